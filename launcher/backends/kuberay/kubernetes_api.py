"""How a call to a Kubernetes cluster is made. The only module on this side that knows the `kubernetes` package.

Every call goes through `_ask`, which turns the package's errors into ours and parses what the server answers (answers.py). The calls
themselves are those of job_api.py and checks_api.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from kubernetes import client, config
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError
from yaml import YAMLError  # type: ignore[import-untyped]

from launcher.backends.kuberay.answers import Answer, Status, parse
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import BackendUnavailable

T = TypeVar("T")

TIMEOUT_S = 20
"""For the answer to one call."""


class KubernetesApi:
    """One cluster and namespace. Every failed call is a BackendUnavailable, often one of the subclasses below, that says what to do."""

    def __init__(self, backend: KubeRayConfig) -> None:
        """Reads the kubeconfig; nothing is asked of the cluster yet."""
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
        self.namespace = str(backend.namespace or chosen["context"].get("namespace") or "default")
        self.context = str(chosen["name"])
        self.server = str(api.configuration.host)
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._rbac = client.RbacAuthorizationV1Api(api)
        self._policy = client.PolicyV1Api(api)
        self._apps = client.AppsV1Api(api)
        self._authorization = client.AuthorizationV1Api(api)
        self._definitions = client.ApiextensionsV1Api(api)
        self._server = client.VersionApi(api)

    def _metadata_only(self) -> client.CoreV1Api:
        """Like `_core`, but the server answers with an object's metadata alone."""
        bare = client.ApiClient(self._core.api_client.configuration)
        bare.set_default_header("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")  # type: ignore[no-untyped-call]
        return client.CoreV1Api(bare)

    def _exists(self, what: str, read: Callable[..., object], *names: str) -> bool:
        try:
            self._ask(what, Answer, read, *names)
        except Missing:
            return False
        return True

    def _ask(self, what: str, answer: type[T], call: Callable[..., Any], *arguments: object, **options: object) -> T:
        """Make a call of the `kubernetes` package and parse what the server answers. `what`: the call in words, as in "refuses to ..."."""
        try:
            response = call(*arguments, **options, _preload_content=False, _request_timeout=TIMEOUT_S)
            return parse(msgspec.json.decode(response.data), answer)
        except ApiException as error:
            raise self._failure(what, error) from error
        except HTTPError as error:
            raise NoAnswer(
                f"the cluster does not answer, to {what}",
                where=self.server,
                given=str(getattr(error, "reason", error)),
                next="check the network (a VPN?), and the server's address in the kubeconfig",
            ) from error
        except msgspec.DecodeError as error:
            raise BackendUnavailable(
                f"what answers there is not a Kubernetes API server, to {what}",
                where=self.server,
                given=str(error),
                next="correct the server's address in the kubeconfig",
            ) from error

    def _failure(self, what: str, error: ApiException) -> BackendUnavailable:
        if error.status == 404:
            return Missing(
                f"the cluster has nothing by which to {what}",
                where=f"namespace {self.namespace} of {self.server}",
                expected="the KubeRay operator with its RayJob resource, and the namespace",
                next="install the operator, or choose another backend.context",
            )
        if error.status == 409:
            return AlreadyThere(f"the cluster has it already: {what}", where=self.server, given=_message(error))
        if error.status == 401:
            return BackendUnavailable(
                f"the cluster does not accept the credentials of context {self.context}, to {what}",
                where=self.server,
                given=_message(error),
                next="log in to the cluster again, or correct the user in the kubeconfig",
            )
        if error.status == 403:
            return Forbidden(
                f"the cluster does not let this account {what}",
                where=f"namespace {self.namespace} of {self.server}",
                given=_message(error),
                next="ask for the rights, or choose another backend.namespace or backend.context",
            )
        kind = Refused if error.status in (400, 422) else BackendUnavailable
        return kind(f"the cluster refuses to {what}", where=self.server, given=_message(error))


class AlreadyThere(BackendUnavailable):
    """An object of this name exists."""


class NoAnswer(BackendUnavailable):
    """The server may have done what was asked, or not."""


class Forbidden(BackendUnavailable):
    """The account does not have the right."""


class Refused(BackendUnavailable):
    """The server does not take what was sent; `given` holds its reason."""


class Missing(BackendUnavailable):
    """There is no such object, or the cluster does not know its kind."""


def _message(error: ApiException) -> str:
    """The API server's own words."""
    with suppress(ValueError, TypeError):
        return parse(msgspec.json.decode(error.body or ""), Status).message
    return f"{error.status} {error.reason}"
