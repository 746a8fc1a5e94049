"""The calls to a Kubernetes cluster that a backend needs. The only module on this side that knows the `kubernetes` package."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kubernetes import client, config
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError
from yaml import YAMLError  # type: ignore[import-untyped]

from launcher.backends.kuberay import rayjob
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import BackendUnavailable, NameTaken

GROUP, VERSION, RAYJOBS = "ray.io", "v1", "rayjobs"
TIMEOUT_S = 20
CREATE_ATTEMPTS = 5


class KubernetesApi:
    """The calls that a job needs, in its namespace; whatever fails is a BackendUnavailable that says what to do."""

    def __init__(self, backend: KubeRayConfig) -> None:
        try:
            api = config.new_client_from_config(context=backend.context)  # type: ignore[no-untyped-call]
            contexts, active = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
        except (config.ConfigException, YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendUnavailable(
                "there is no Kubernetes cluster to go to",
                where="kubeconfig",
                given=str(error) if isinstance(error, (config.ConfigException, YAMLError, OSError)) else "a file that is no kubeconfig",
                expected="a kubeconfig with this context",
                next="set KUBECONFIG, or backend.context; or use backend=local",
            ) from error
        chosen = next((each for each in contexts if each["name"] == backend.context), active)
        self.namespace = backend.namespace or chosen["context"].get("namespace") or "default"
        self.context = str(chosen["name"])
        self.server = str(api.configuration.host)
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._rbac = client.RbacAuthorizationV1Api(api)
        self._policy = client.PolicyV1Api(api)
        self._client = api

    def check(self) -> None:
        """Whether RayJobs can be had here."""
        self._call("list RayJobs", lambda: self._custom.list_namespaced_custom_object(*self._rayjobs, limit=1, _request_timeout=TIMEOUT_S))

    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None:
        """How many each node has that takes pods and bears these labels; None where nodes may not be listed."""
        labels = ",".join(f"{name}={value}" for name, value in selector.items())
        try:
            nodes: Any = self._core.list_node(label_selector=labels, _request_timeout=TIMEOUT_S).items
        except (ApiException, HTTPError):
            return None
        return [int(node.status.allocatable.get(resource, 0)) for node in nodes if not node.spec.unschedulable]

    def find(self, name: str) -> Any:
        try:
            return self._call(
                "read the RayJob", lambda: self._custom.get_namespaced_custom_object(*self._rayjobs, name, _request_timeout=TIMEOUT_S)
            )
        except Missing:
            return None

    def create(self, document: rayjob.Document) -> Any:
        """Create the RayJob once, also where the answer is lost: what is there when it is tried again, and is of the same run, is this one.

        Raises NameTaken when it is another's.
        """
        made = self._create(
            "RayJob", lambda: self._custom.create_namespaced_custom_object(*self._rayjobs, document, _request_timeout=TIMEOUT_S)
        )
        if made is not None:
            return made
        name, ours = str(document["metadata"]["name"]), document["metadata"]["annotations"]
        found = self.find(name)
        theirs = found["metadata"].get("annotations", {}) if found is not None else ours
        if found is None or any(theirs.get(key) != value for key, value in ours.items()):
            raise NameTaken("there is a RayJob of this name", where=f"namespace {self.namespace}", given=name)
        return found

    def _create(self, kind: str, create: Callable[[], Any]) -> Any:
        """None when it is there already. Tried again where no answer came: it may have been created or not."""
        left = CREATE_ATTEMPTS
        while True:
            left -= 1
            try:
                return self._call(f"create the {kind}", create)
            except AlreadyThere:
                return None
            except NoAnswer:
                if not left:
                    raise
            time.sleep(1.0)

    def refusal(self, document: rayjob.Document) -> str:
        """Why the cluster would not take this RayJob as it is: a field it does not know, a value, an admission policy. Writes nothing."""
        try:
            self._custom.create_namespaced_custom_object(
                *self._rayjobs, document, dry_run="All", field_validation="Strict", _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            # 400 is also the answer where an admission webhook cannot be asked without an effect; others are not about the document.
            message = _message(error)
            if error.status in (400, 422) and "dry run" not in message:
                return message
        except HTTPError:
            pass  # the calls that matter say so
        return ""

    def apply_companion(self, document: rayjob.Document) -> None:
        """Create it, or change the one that is there: one of an earlier RayJob goes with that unless it gets the new owner in time."""
        kind, name = str(document["kind"]), str(document["metadata"]["name"])
        create, patch = self._companions()[kind]
        while self._create(kind, lambda: create(self.namespace, document, _request_timeout=TIMEOUT_S)) is None:
            try:
                self._call(f"change the {kind}", lambda: patch(name, self.namespace, document, _request_timeout=TIMEOUT_S))
                return
            except Missing:  # it went meanwhile
                continue

    def _companions(self) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
        """How each kind is created and patched."""
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

    def secret_value(self, name: str, key: str) -> str:
        secret: Any = self._call(
            "read the Secret with Ray's token",
            lambda: self._core.read_namespaced_secret(name, self.namespace, _request_timeout=TIMEOUT_S),
        )
        return base64.b64decode(secret.data[key]).decode()

    def service_url(self, service: str, port: int) -> str:
        return f"{self.server}/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy/"

    def through_proxy(
        self, service: str, port: int, token: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Any:
        """An HTTP request to a Ray behind a service, whose content is not loaded yet; Authorization is the API server's own header."""
        api = self._core.api_client
        own: dict[str, str] = {**headers, **api.default_headers, "X-Ray-Authorization": f"Bearer {token}"}
        api.update_params_for_auth(own, [], ["BearerToken"], path, method, body)
        url = self.service_url(service, port) + path.removeprefix("/")
        return api.rest_client.pool_manager.request(
            method, url, headers=own, body=body, preload_content=False, redirect=False, timeout=TIMEOUT_S
        )

    def warnings(self, of: str) -> list[str]:
        """What the cluster says against objects whose names begin so, the newest of each kind, newest first."""
        listing = self._core.list_namespaced_event
        events: Any = self._read("list events", listing, self.namespace, field_selector="type=Warning")["items"]
        newest: dict[tuple[str, str], str] = {}
        for event in sorted(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")):
            about = event["involvedObject"]
            if str(about.get("name", "")).startswith(of):
                newest.pop((about["kind"], event.get("reason", "")), None)
                newest[about["kind"], event.get("reason", "")] = str(event.get("message", "")).strip()
        return list(reversed(newest.values()))

    def pods(self, selector: str) -> list[Any]:
        listed = self._call(
            "list pods", lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=TIMEOUT_S)
        )
        return list(listed.items)

    @property
    def _rayjobs(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, RAYJOBS

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ApiException as error:
            if error.status == 404:
                raise Missing(what, self) from error
            if error.status == 409:
                raise AlreadyThere(f"the cluster has it already: {what}", where=self.server, given=_message(error)) from error
            if error.status == 401:
                raise BackendUnavailable(
                    f"the cluster does not accept the credentials of context {self.context}, to {what}",
                    where=self.server,
                    given=_message(error),
                    next="log in to the cluster again, or correct the user in the kubeconfig",
                ) from error
            if error.status == 403:
                raise Forbidden(
                    f"the cluster does not let this account {what}",
                    where=f"namespace {self.namespace} of {self.server}",
                    given=_message(error),
                    next="ask for the rights, or choose another backend.namespace or backend.context",
                ) from error
            raise BackendUnavailable(f"the cluster refuses to {what}", where=self.server, given=_message(error)) from error
        except HTTPError as error:
            raise NoAnswer(
                f"the cluster does not answer, to {what}",
                where=self.server,
                given=str(getattr(error, "reason", error)),
                next="check the network (a VPN?), and the server's address in the kubeconfig",
            ) from error

    # what is asked before there is a job

    def server_version(self) -> str:
        return str(self._read("ask for its version", client.VersionApi(self._client).get_code)["gitVersion"])

    def namespace_exists(self) -> bool:
        """Raises Forbidden where this account may not ask."""
        return self._exists("read the namespace", self._core.read_namespace, self.namespace)

    def allows(self, verb: str, group: str, resource: str, subresource: str = "") -> bool:
        """Whether this account may do this in the namespace."""
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        review = client.AuthorizationV1Api(self._client).create_self_subject_access_review
        return bool(self._read("ask what it may do", review, body)["status"]["allowed"])

    def served(self) -> tuple[str, ...]:
        """The resources of ray.io/v1: empty without KubeRay. Everybody may ask."""
        try:
            listed = self._read("list its resources", self._custom.get_api_resources, GROUP, VERSION)
        except Missing:
            return ()
        return tuple(str(resource["name"]) for resource in listed["resources"])

    def definition(self, name: str) -> rayjob.Document:
        """A custom resource definition. Raises Forbidden where this account may not read it."""
        read = client.ApiextensionsV1Api(self._client).read_custom_resource_definition
        return dict(self._read(f"read the definition of {name}", read, name))

    def operators(self) -> list[rayjob.Document]:
        """Deployments of the KubeRay operator in all namespaces. Raises Forbidden where this account may not list them."""
        listing = client.AppsV1Api(self._client).list_deployment_for_all_namespaces
        found = [
            deployment
            for chosen in (
                {"label_selector": "app.kubernetes.io/name=kuberay-operator"},
                {"field_selector": "metadata.name=kuberay-operator"},
            )
            for deployment in self._read("list deployments", listing, **chosen)["items"]
        ]
        return list({str(deployment["metadata"]["uid"]): deployment for deployment in found}.values())

    def secret_exists(self, name: str) -> bool:
        """Without its values: only its metadata is asked for. Raises Forbidden where this account may not ask."""
        bare = client.ApiClient(self._client.configuration)
        bare.set_default_header("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")  # type: ignore[no-untyped-call]
        return self._exists("read the Secret's metadata", client.CoreV1Api(bare).read_namespaced_secret, name, self.namespace)

    def create_pod(self, document: rayjob.Document) -> None:
        self._read("create a pod", self._core.create_namespaced_pod, self.namespace, document)

    def find_pod(self, name: str) -> rayjob.Document | None:
        try:
            return dict(self._read("read a pod", self._core.read_namespaced_pod, name, self.namespace))
        except Missing:
            return None

    def delete_pod(self, name: str) -> None:
        with suppress(Missing):
            self._read("delete a pod", self._core.delete_namespaced_pod, name, self.namespace, grace_period_seconds=0)

    def pod_events(self, name: str) -> list[rayjob.Document]:
        listing = self._core.list_namespaced_event
        return list(self._read("list events", listing, self.namespace, field_selector=f"involvedObject.name={name}")["items"])

    def _exists(self, what: str, read: Callable[..., Any], *names: str) -> bool:
        try:
            self._read(what, read, *names)
        except Missing:
            return False
        return True

    def _read(self, what: str, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The answer as the API server writes it: names as in its reference."""
        answer = self._call(what, lambda: read(*arguments, **options, _preload_content=False, _request_timeout=TIMEOUT_S))
        return json.loads(answer.data)


class AlreadyThere(BackendUnavailable):
    pass


class NoAnswer(BackendUnavailable):
    """What was asked may have been done or not."""


class Forbidden(BackendUnavailable):
    """The account has not the right."""


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
