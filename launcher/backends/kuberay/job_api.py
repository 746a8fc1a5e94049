"""The calls to a Kubernetes cluster that a job needs: its RayJob, what belongs to it, the nodes, and Ray's dashboard."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from urllib3 import BaseHTTPResponse

from launcher.backends.kuberay.answers import Answer, Event, Items, KubernetesObject, Node, Pod, RayJob, Secret, parse
from launcher.backends.kuberay.kubernetes_api import TIMEOUT_S, AlreadyThere, KubernetesApi, Missing, NoAnswer, Refused
from launcher.core.errors import BackendUnavailable, NameTaken
from launcher.core.types import JsonObject

T = TypeVar("T")

GROUP, VERSION, RAYJOBS = "ray.io", "v1", "rayjobs"
CREATE_ATTEMPTS = 5
CREATE_PACE_S = 1.0
GONE_POLL_S = 0.5


class JobApi(KubernetesApi):
    # the RayJob

    def check(self) -> None:
        """Raises BackendUnavailable where RayJobs cannot be had here: no KubeRay, no namespace, no right, no answer."""
        self._ask("list RayJobs", Answer, self._custom.list_namespaced_custom_object, *self._rayjobs, limit=1)

    def find(self, name: str) -> RayJob | None:
        try:
            return self._ask("read the RayJob", RayJob, self._custom.get_namespaced_custom_object, *self._rayjobs, name)
        except Missing:
            return None

    def create(self, document: JsonObject) -> RayJob:
        """Create the RayJob once, also where an answer is lost: a RayJob of the same name and annotations is then taken for this one.

        Raises NameTaken where another RayJob has the name.
        """
        made = self._create("RayJob", RayJob, self._custom.create_namespaced_custom_object, *self._rayjobs, document)
        if made is not None:
            return made
        ours = parse(document, RayJob).metadata
        found = self.find(ours.name)
        if found is None or any(found.metadata.annotations.get(key) != value for key, value in ours.annotations.items()):
            raise NameTaken("there is a RayJob of this name", where=f"namespace {self.namespace}", given=ours.name)
        return found

    def refusal(self, document: JsonObject) -> str:
        """Why the cluster would not take this RayJob as it is: a field it does not know, a value, an admission policy. Writes nothing."""
        create = self._custom.create_namespaced_custom_object
        try:
            self._ask("take the RayJob", Answer, create, *self._rayjobs, document, dry_run="All", field_validation="Strict")
        except Refused as error:
            # The answer of an admission webhook that does not support a dry run says nothing about the document.
            return "" if "dry run" in error.given else error.given
        except BackendUnavailable:
            pass  # the calls that matter meet it as well, and tell
        return ""

    def delete(self, name: str) -> None:
        """Delete the RayJob, where there is one."""
        with suppress(Missing):
            self._ask("delete the RayJob", Answer, self._custom.delete_namespaced_custom_object, *self._rayjobs, name)

    def wait_until_gone(self, name: str, patience_s: float) -> None:
        """Raises BackendUnavailable where the RayJob is still there after so many seconds."""
        deadline = time.monotonic() + patience_s
        while self.find(name) is not None:
            if time.monotonic() > deadline:
                raise BackendUnavailable(f"the ended RayJob {name} is not gone after {patience_s:g} s", where=f"namespace {self.namespace}")
            time.sleep(GONE_POLL_S)

    # what belongs to a RayJob

    def apply_companion(self, document: JsonObject) -> None:
        """Create the object, or change the one of an earlier RayJob, which would be deleted with that unless it gets its new owner."""
        described = parse(document, KubernetesObject)
        kind, name = described.kind, described.metadata.name
        create, patch = self._companions()[kind]
        while self._create(kind, Answer, create, self.namespace, document) is None:
            try:
                self._ask(f"change the {kind}", Answer, patch, name, self.namespace, document)
                return
            except Missing:  # it was deleted between the two calls
                continue

    def _companions(self) -> dict[str, tuple[Callable[..., object], Callable[..., object]]]:
        """Kind -> the calls that create and patch it."""
        core, rbac, policy = self._core, self._rbac, self._policy
        return {
            "ServiceAccount": (core.create_namespaced_service_account, core.patch_namespaced_service_account),
            "Role": (rbac.create_namespaced_role, rbac.patch_namespaced_role),
            "RoleBinding": (rbac.create_namespaced_role_binding, rbac.patch_namespaced_role_binding),
            "PodDisruptionBudget": (
                policy.create_namespaced_pod_disruption_budget,
                policy.patch_namespaced_pod_disruption_budget,
            ),
        }

    # the cluster

    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None:
        """How many each node has that takes pods and bears these labels; None where nodes cannot be listed."""
        labels = ",".join(f"{name}={value}" for name, value in selector.items())
        try:
            nodes = self._ask("list nodes", Items[Node], self._core.list_node, label_selector=labels).items
        except BackendUnavailable:
            return None
        return [int(node.status.allocatable.get(resource, 0)) for node in nodes if not node.spec.unschedulable]

    def pods(self, selector: str) -> tuple[Pod, ...]:
        return self._ask("list pods", Items[Pod], self._core.list_namespaced_pod, self.namespace, label_selector=selector).items

    def warnings(self, of: str) -> list[str]:
        """The messages of warning events about objects whose names begin so: the newest of each kind and reason, newest first."""
        listing = self._core.list_namespaced_event
        events = self._ask("list events", Items[Event], listing, self.namespace, field_selector="type=Warning").items
        newest: dict[tuple[str, str], str] = {}
        for event in sorted(events, key=lambda event: event.time):
            about = event.involved_object
            if about.name.startswith(of):
                newest.pop((about.kind, event.reason), None)
                newest[about.kind, event.reason] = event.message.strip()
        return list(reversed(newest.values()))

    # Ray's dashboard

    def secret_value(self, name: str, key: str) -> str:
        secret = self._ask("read the Secret with Ray's token", Secret, self._core.read_namespaced_secret, name, self.namespace)
        return base64.b64decode(secret.data[key]).decode()

    def service_url(self, service: str, port: int) -> str:
        return f"{self.server}/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy/"

    def through_proxy(
        self, service: str, port: int, token: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> BaseHTTPResponse:
        """An HTTP request to a Ray behind a service; the answer's content is not loaded yet.

        The API server takes the Authorization header for itself, so Ray's token goes into a header that Ray knows as well.
        """
        api = self._core.api_client
        own: dict[str, str] = {**headers, **api.default_headers, "X-Ray-Authorization": f"Bearer {token}"}
        api.update_params_for_auth(own, [], ["BearerToken"], path, method, body)
        url = self.service_url(service, port) + path.removeprefix("/")
        answer: BaseHTTPResponse = api.rest_client.pool_manager.request(
            method, url, headers=own, body=body, preload_content=False, redirect=False, timeout=TIMEOUT_S
        )
        return answer

    # how they are made

    @property
    def _rayjobs(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, RAYJOBS

    def _create(self, kind: str, answer: type[T], create: Callable[..., object], *arguments: object) -> T | None:
        """None where the object is there already. Tried again where no answer came: it may have been created or not."""
        left = CREATE_ATTEMPTS
        while True:
            left -= 1
            try:
                return self._ask(f"create the {kind}", answer, create, *arguments)
            except AlreadyThere:
                return None
            except NoAnswer:
                if not left:
                    raise
            time.sleep(CREATE_PACE_S)
