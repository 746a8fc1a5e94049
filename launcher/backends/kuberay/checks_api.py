"""The calls to a Kubernetes cluster that only the checks need: what is there, what this account may do, and the probe's pod.

A call that this account may not make raises Forbidden, which the checks report as a warning: the job may run all the same.
"""

from __future__ import annotations

from contextlib import suppress

from launcher.backends.kuberay.answers import (
    AccessReview,
    Answer,
    Definition,
    Deployment,
    Event,
    Items,
    Pod,
    ResourceList,
    ServerVersion,
)
from launcher.backends.kuberay.job_api import GROUP, VERSION, JobApi
from launcher.backends.kuberay.kubernetes_api import Missing
from launcher.core.types import JsonObject


class ChecksApi(JobApi):
    def server_version(self) -> str:
        return self._ask("ask for its version", ServerVersion, self._server.get_code).git_version

    def namespace_exists(self) -> bool:
        return self._exists("read the namespace", self._core.read_namespace, self.namespace)

    def secret_exists(self, name: str) -> bool:
        """Reads the Secret's metadata alone: its values stay in the cluster."""
        return self._exists("read the Secret's metadata", self._metadata_only().read_namespaced_secret, name, self.namespace)

    def allows(self, verb: str, group: str, resource: str, subresource: str = "") -> bool:
        """Whether this account may do this in the namespace; every account may ask."""
        asked: JsonObject = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource}
        body: JsonObject = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        review = self._authorization.create_self_subject_access_review
        return self._ask("ask what it may do", AccessReview, review, body).status.allowed

    def served(self) -> tuple[str, ...]:
        """The resources of ray.io/v1, none without KubeRay; every account may ask."""
        try:
            listed = self._ask("list its resources", ResourceList, self._custom.get_api_resources, GROUP, VERSION)
        except Missing:
            return ()
        return tuple(resource.name for resource in listed.resources)

    def definition(self, name: str) -> Definition:
        read = self._definitions.read_custom_resource_definition
        return self._ask(f"read the definition of {name}", Definition, read, name)

    def operators(self) -> list[Deployment]:
        """Deployments of the KubeRay operator in all namespaces, by its chart's label or by its name."""
        listing = self._apps.list_deployment_for_all_namespaces
        found = [
            deployment
            for chosen in (
                {"label_selector": "app.kubernetes.io/name=kuberay-operator"},
                {"field_selector": "metadata.name=kuberay-operator"},
            )
            for deployment in self._ask("list deployments", Items[Deployment], listing, **chosen).items
        ]
        return list({deployment.metadata.uid: deployment for deployment in found}.values())

    def create_pod(self, document: JsonObject) -> None:
        self._ask("create a pod", Answer, self._core.create_namespaced_pod, self.namespace, document)

    def find_pod(self, name: str) -> Pod | None:
        try:
            return self._ask("read a pod", Pod, self._core.read_namespaced_pod, name, self.namespace)
        except Missing:
            return None

    def delete_pod(self, name: str) -> None:
        """Delete the pod at once, where there is one."""
        with suppress(Missing):
            self._ask("delete a pod", Answer, self._core.delete_namespaced_pod, name, self.namespace, grace_period_seconds=0)

    def pod_events(self, name: str) -> tuple[Event, ...]:
        listing = self._core.list_namespaced_event
        return self._ask("list events", Items[Event], listing, self.namespace, field_selector=f"involvedObject.name={name}").items
