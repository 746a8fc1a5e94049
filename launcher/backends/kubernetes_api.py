"""The calls to a Kubernetes cluster that launcher needs. The only module that knows the `kubernetes` package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kubernetes import client, config
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from launcher.backends import rayjob
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import BackendUnavailable, NameTaken

GROUP, VERSION, RAYJOBS = "ray.io", "v1", "rayjobs"
TIMEOUT_S = 20


class KubernetesApi:
    """The calls that a job needs, in its namespace; whatever fails is a BackendUnavailable that says what to do."""

    def __init__(self, backend: KubeRayConfig) -> None:
        try:
            api = config.new_client_from_config(context=backend.context)  # type: ignore[no-untyped-call]
            contexts, active = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise BackendUnavailable(
                "there is no Kubernetes cluster to go to",
                where="kubeconfig",
                given=str(error),
                expected="a kubeconfig with this context",
                next="set KUBECONFIG, or backend.context; or use backend=local",
            ) from error
        chosen = next((each for each in contexts if each["name"] == backend.context), active)
        self.namespace = backend.namespace or chosen["context"].get("namespace") or "default"
        self.server = str(api.configuration.host)
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._rbac = client.RbacAuthorizationV1Api(api)
        self._policy = client.PolicyV1Api(api)

    def check(self) -> None:
        """Whether RayJobs can be had here."""
        self._call("list RayJobs", lambda: self._custom.list_namespaced_custom_object(*self._rayjobs, limit=1, _request_timeout=TIMEOUT_S))

    def gpus(self, resource: str) -> int | None:
        """How many the nodes have; None where they may not be listed."""
        try:
            nodes: Any = self._core.list_node(_request_timeout=TIMEOUT_S).items
        except (ApiException, HTTPError):
            return None
        return sum(int(node.status.allocatable.get(resource, 0)) for node in nodes if not node.spec.unschedulable)

    def find(self, name: str) -> Any:
        try:
            return self._call(
                "read the RayJob", lambda: self._custom.get_namespaced_custom_object(*self._rayjobs, name, _request_timeout=TIMEOUT_S)
            )
        except Missing:
            return None

    def create(self, document: rayjob.Document) -> Any:
        """Create-if-absent: a job whose answer was lost is found when it is tried again."""
        name = str(document["metadata"]["name"])
        return self._call(
            "create the RayJob",
            lambda: self._custom.create_namespaced_custom_object(*self._rayjobs, document, _request_timeout=TIMEOUT_S),
            taken=lambda: NameTaken("there is a RayJob of this name", where=f"namespace {self.namespace}", given=name),
        )

    def create_companion(self, document: rayjob.Document) -> None:
        create: Any = {
            "ServiceAccount": self._core.create_namespaced_service_account,
            "Role": self._rbac.create_namespaced_role,
            "RoleBinding": self._rbac.create_namespaced_role_binding,
            "PodDisruptionBudget": self._policy.create_namespaced_pod_disruption_budget,
        }[str(document["kind"])]
        self._call(f"create the {document['kind']}", lambda: create(self.namespace, document, _request_timeout=TIMEOUT_S))

    def delete(self, name: str) -> None:
        with suppress(Missing):
            self._call(
                "delete the RayJob", lambda: self._custom.delete_namespaced_custom_object(*self._rayjobs, name, _request_timeout=TIMEOUT_S)
            )

    def wait_until_gone(self, name: str, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while self.find(name) is not None:
            if time.monotonic() > deadline:
                raise BackendUnavailable(f"the ended RayJob {name} is not gone after {patience_s:g} s", where=f"namespace {self.namespace}")
            time.sleep(0.5)

    def pods(self, selector: str) -> list[Any]:
        listed = self._call(
            "list pods", lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=TIMEOUT_S)
        )
        return list(listed.items)

    @property
    def _rayjobs(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, RAYJOBS

    def _call(self, what: str, call: Callable[[], Any], *, taken: Callable[[], Exception] | None = None) -> Any:
        try:
            return call()
        except ApiException as error:
            if error.status == 404:
                raise Missing(what, self) from error
            if error.status == 409 and taken is not None:
                raise taken() from error
            if error.status in (401, 403):
                raise BackendUnavailable(
                    f"the cluster does not let this account {what}",
                    where=f"namespace {self.namespace} of {self.server}",
                    given=_message(error),
                    next="ask for the rights, or choose another backend.namespace or backend.context",
                ) from error
            raise BackendUnavailable(f"the cluster refuses to {what}", where=self.server, given=_message(error)) from error
        except HTTPError as error:
            raise BackendUnavailable(f"the cluster does not answer, to {what}", where=self.server, given=str(error)) from error


class Missing(BackendUnavailable):
    def __init__(self, what: str, api: KubernetesApi) -> None:
        super().__init__(
            f"the cluster has nothing by which to {what}",
            where=f"namespace {api.namespace} of {api.server}",
            expected="the KubeRay operator with its RayJob resource, and the namespace",
            next="install the operator, or choose another backend.context",
        )


def _message(error: ApiException) -> str:
    """The API server's own words."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body or "")["message"])
    return f"{error.status} {error.reason}"
