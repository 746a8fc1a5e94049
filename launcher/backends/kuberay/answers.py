"""What a Kubernetes API server answers, parsed where it enters: only the fields that are looked at.

Names are those of the Kubernetes and KubeRay API references, in Python's spelling. As in Kubernetes itself, a field that is missing and a
field that is null mean the same: the default.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from launcher.core.types import Json

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """An answer of which nothing is looked at but that it came; the base of all others."""


class Metadata(Answer, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] = {}


class KubernetesObject(Answer, frozen=True):
    kind: str = ""
    metadata: Metadata = Metadata()


class Items(Answer, Generic[T], frozen=True):
    items: tuple[T, ...] = ()


class Status(Answer, frozen=True):
    """The answer where a call failed."""

    message: str


# a job


class RayJobStatus(Answer, frozen=True):
    job_deployment_status: str = ""
    """What the operator does with it now: Initializing, Running, Complete, Failed, ..."""
    reason: str = ""
    message: str = ""
    ray_cluster_name: str = ""


class RayJob(Answer, frozen=True):
    metadata: Metadata = Metadata()
    status: RayJobStatus = RayJobStatus()

    @property
    def taken_up(self) -> bool:
        """Whether the operator has written a status."""
        return self.status != RayJobStatus()


# pods, and what happens to them


class Waiting(Answer, frozen=True):
    reason: str = ""
    message: str = ""


class Terminated(Answer, frozen=True):
    reason: str = ""
    message: str = ""
    exit_code: int | None = None


class ContainerState(Answer, frozen=True):
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(Answer, frozen=True):
    state: ContainerState = ContainerState()


class Condition(Answer, frozen=True):
    type: str = ""
    status: str = ""
    message: str = ""


class PodStatus(Answer, frozen=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Answer, frozen=True):
    metadata: Metadata = Metadata()
    status: PodStatus = PodStatus()

    @property
    def unschedulable(self) -> str | None:
        """Why no node takes the pod, in the scheduler's words; None where it has not said so."""
        for condition in self.status.conditions:
            if condition.type == "PodScheduled" and condition.status == "False":
                return condition.message
        return None


class ObjectReference(Answer, frozen=True):
    kind: str = ""
    name: str = ""


class Event(Answer, frozen=True):
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    last_timestamp: str = ""
    event_time: str = ""

    @property
    def time(self) -> str:
        """Sorts by time as text; "" where the event has none."""
        return self.last_timestamp or self.event_time


# the cluster


class NodeSpec(Answer, frozen=True):
    unschedulable: bool = False


class NodeStatus(Answer, frozen=True):
    allocatable: dict[str, str] = {}
    """Resource -> a Kubernetes quantity."""


class Node(Answer, frozen=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Secret(Answer, frozen=True):
    data: dict[str, str] = {}
    """Values in base64."""


class ServerVersion(Answer, frozen=True):
    git_version: str


class AccessReviewStatus(Answer, frozen=True):
    allowed: bool


class AccessReview(Answer, frozen=True):
    status: AccessReviewStatus


class Resource(Answer, frozen=True):
    name: str


class ResourceList(Answer, frozen=True):
    resources: tuple[Resource, ...] = ()


# the operator, and what it defines


class Schema(Answer, frozen=True):
    properties: dict[str, Schema] = {}

    def has(self, *path: str) -> bool:
        """Whether the schema knows the field at this path."""
        return not path or (path[0] in self.properties and self.properties[path[0]].has(*path[1:]))


class DefinitionSchema(Answer, frozen=True):
    open_api: Schema = msgspec.field(default=Schema(), name="openAPIV3Schema")


class DefinitionVersion(Answer, frozen=True):
    name: str
    served: bool
    schema: DefinitionSchema = DefinitionSchema()


class DefinitionSpec(Answer, frozen=True):
    versions: tuple[DefinitionVersion, ...]


class Definition(Answer, frozen=True):
    """A CustomResourceDefinition."""

    spec: DefinitionSpec


class Container(Answer, frozen=True):
    name: str
    image: str


class PodSpec(Answer, frozen=True):
    containers: tuple[Container, ...]


class PodTemplate(Answer, frozen=True):
    spec: PodSpec


class DeploymentSpec(Answer, frozen=True):
    template: PodTemplate


class DeploymentStatus(Answer, frozen=True):
    available_replicas: int = 0


class Deployment(Answer, frozen=True):
    metadata: Metadata
    spec: DeploymentSpec
    status: DeploymentStatus = DeploymentStatus()


def parse(document: Json, kind: type[T]) -> T:
    """Raises msgspec.ValidationError for a document of another form."""
    return msgspec.convert(_without_nulls(document), kind)


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
