"""What a job on Kubernetes needs, checked one thing after the other before there is one.

The last check is a pod with the image, the secret and the restrictions of a job's head: only a pod can tell that the image can be had,
what is in it, and that the run store is reached from there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from launcher.backends.base import Finding, Result
from launcher.backends.kuberay import rayjob
from launcher.backends.kuberay.kubernetes_api import Forbidden, KubernetesApi
from launcher.backends.kuberay.settings import check_settings
from launcher.backends.probe_report import ProbeReport, parse_report, versions_words
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import BackendUnavailable, ConfigError, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.store import is_local, open_store
from launcher.core.types import RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.versions import disagreement, installed_versions, record_image

OLDEST = (1, 6)
"""Of the operator."""
OLDEST_FIELD = ("rayClusterSpec", "authOptions", "enableK8sTokenAuth")
"""Of a RayJob's spec: came with OLDEST, so its definition tells the age also where the operator cannot be seen."""
RESOURCES = ("rayjobs", "rayclusters")
INSTALL = "install the operator: helm install kuberay-operator kuberay/kuberay-operator (its documentation: docs.ray.io, KubeRay)"
PROBE_S = 90.0
"""From the pod's creation to its answer; a run store that does not answer is given up within half of it."""
PROBE_PACE_S = 0.5
REPORT_FILE = "/dev/termination-log"
"""Kubernetes shows it in the pod's status, so that no right to read logs is needed."""
PROBE_RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")
NO_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_CLUSTER, _NAMESPACE, _RIGHTS, _MORE_RIGHTS = "cluster", "namespace", "rights", "further rights"
_KUBERAY, _OPERATOR, _GPUS, _SECRET, _JOB, _POD, _STORE = (
    "KubeRay",
    "KubeRay operator",
    "GPUs",
    "secret",
    "RayJob",
    "pod",
    "run store from a pod",
)


@dataclass(frozen=True)
class Right:
    group: str
    resource: str
    """With its subresource behind a slash, as in a Role."""
    verbs: tuple[str, ...]

    def words(self, verbs: Sequence[str]) -> str:
        return f"{','.join(verbs)} {self.resource}{f'.{self.group}' if self.group else ''}"


NEEDED = (
    Right("ray.io", "rayjobs", ("create", "get", "list", "delete")),
    # Whoever makes a Role must have what it grants: rayclusters and poddisruptionbudgets are for the controller of a job.
    Right("ray.io", "rayclusters", ("get", "patch")),
    Right("", "serviceaccounts", ("create", "patch")),
    Right("rbac.authorization.k8s.io", "roles", ("create", "patch")),
    Right("rbac.authorization.k8s.io", "rolebindings", ("create", "patch")),
    Right("policy", "poddisruptionbudgets", ("create", "get", "patch")),
    Right("", "pods", ("list",)),
)
PROBE = Right("", "pods", ("create", "get", "delete"))
FURTHER = (
    Right("", "services/proxy", ("get",)),
    Right("", "secrets", ("get",)),
    Right("", "events", ("list",)),
    PROBE,
)
"""Without them jobs run: for the dashboard and its token, for the reasons of a wait, and for these checks themselves."""


class Api(Protocol):
    """What is asked of KubernetesApi."""

    namespace: str
    context: str
    server: str

    def server_version(self) -> str: ...
    def namespace_exists(self) -> bool: ...
    def allows(self, verb: str, group: str, resource: str, subresource: str = "") -> bool: ...
    def served(self) -> tuple[str, ...]: ...
    def definition(self, name: str) -> rayjob.Document: ...
    def operators(self) -> list[rayjob.Document]: ...
    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None: ...
    def secret_exists(self, name: str) -> bool: ...
    def refusal(self, document: rayjob.Document) -> str: ...
    def create_pod(self, document: rayjob.Document) -> None: ...
    def find_pod(self, name: str) -> rayjob.Document | None: ...
    def delete_pod(self, name: str) -> None: ...
    def pod_events(self, name: str) -> list[rayjob.Document]: ...


def examine(
    config: JobConfig, *, open_api: Callable[[KubeRayConfig], Api] = KubernetesApi, clock: Clock | None = None
) -> Iterator[Finding]:
    """Ends early where nothing that follows could be told."""
    backend = config.backend
    assert isinstance(backend, KubeRayConfig)
    try:
        check_settings(backend)
    except ConfigError as error:
        yield Finding.of_error("settings", error)
        return
    try:
        api = open_api(backend)
    except BackendUnavailable as error:
        found = Finding.of_error(_CLUSTER, error)
        # A context that somebody wrote down and that is not there is a mistake; no kubeconfig at all is a machine without a cluster.
        yield replace(found, exit_code=ExitCode.USAGE) if backend.context is not None else found
        return
    for name, check in ((_CLUSTER, _reach), (_NAMESPACE, _namespace)):
        finding = _checked(name, check, api)
        yield finding
        if finding.result is Result.FAILED:
            return
    rights, further, may_probe = _rights(api)
    yield rights
    yield further
    yield _checked(_KUBERAY, _definitions, api)
    yield _checked(_OPERATOR, _operator, api)
    yield _checked(_GPUS, _gpus, api, config, backend)
    secret = _checked(_SECRET, _secret, api, backend)
    yield secret
    refusal = api.refusal(_rayjob(_name(), config, backend, config.runs))
    if refusal:  # that nothing is refused is no news: the account may not have been asked that far
        yield Finding.failed(_JOB, f"the cluster would refuse it: {refusal}", "change what it names: keys of backend", ExitCode.USAGE)
    yield from _probe(api, config, backend, secret, may_probe, clock or SystemClock())


def _checked(name: str, check: Callable[..., Finding], *arguments: Any) -> Finding:
    try:
        return check(*arguments)
    except LauncherError as error:
        return Finding.of_error(name, error)


# each check: what it asks of the cluster, and what it makes of the answer


def _reach(api: Api) -> Finding:
    return Finding.ok(_CLUSTER, f"Kubernetes {api.server_version()} at {api.server} (context {api.context})")


def _namespace(api: Api) -> Finding:
    try:
        there = api.namespace_exists()
    except Forbidden:
        return Finding.warning(_NAMESPACE, f"{api.namespace}; this account may not ask whether it exists")
    if there:
        return Finding.ok(_NAMESPACE, api.namespace)
    return Finding.failed(
        _NAMESPACE,
        f"there is no namespace {api.namespace} at {api.server}",
        f"set backend.namespace to one that exists, or: kubectl create namespace {api.namespace}",
        ExitCode.USAGE,
    )


def _rights(api: Api) -> tuple[Finding, Finding, bool]:
    """What the account may do; the last: whether it may have a pod for these checks."""
    try:
        needed, further = missing_rights(api, NEEDED), missing_rights(api, FURTHER)
    except LauncherError as error:
        return Finding.of_error(_RIGHTS, error), Finding.warning(_MORE_RIGHTS, "not known"), True
    may_probe = PROBE not in [right for right, _ in further]
    return judge_needed(needed, api.namespace), judge_further(further, api.namespace), may_probe


def missing_rights(api: Api, rights: Sequence[Right]) -> list[tuple[Right, list[str]]]:
    lacking = []
    for right in rights:
        resource, _, subresource = right.resource.partition("/")
        verbs = [verb for verb in right.verbs if not api.allows(verb, right.group, resource, subresource)]
        if verbs:
            lacking.append((right, verbs))
    return lacking


def judge_needed(lacking: Sequence[tuple[Right, Sequence[str]]], namespace: str) -> Finding:
    if not lacking:
        return Finding.ok(_RIGHTS, "this account may start, follow and end jobs")
    return Finding.failed(
        _RIGHTS,
        f"in namespace {namespace} this account may not: {_words(lacking)}",
        "ask whoever runs the cluster for a Role with these; docs/doctor.md shows it whole",
    )


def judge_further(lacking: Sequence[tuple[Right, Sequence[str]]], namespace: str) -> Finding:
    if not lacking:
        return Finding.ok(_MORE_RIGHTS, "this account may see the dashboard and events, and have a pod for these checks")
    return Finding.warning(
        _MORE_RIGHTS,
        f"in namespace {namespace} this account may not: {_words(lacking)}",
        "jobs run without them; they serve the dashboard (services/proxy, secrets), reasons of a wait (events) and these checks (pods)",
    )


def _words(lacking: Sequence[tuple[Right, Sequence[str]]]) -> str:
    return "; ".join(right.words(verbs) for right, verbs in lacking)


def _definitions(api: Api) -> Finding:
    served = api.served()
    lacking = [f"{name}.ray.io" for name in RESOURCES if name not in served]
    if lacking:
        return Finding.failed(_KUBERAY, f"the cluster does not serve {' and '.join(lacking)} in v1", INSTALL)
    try:
        return judge_definition(api.definition("rayjobs.ray.io"))
    except Forbidden:
        return Finding.warning(_KUBERAY, "rayjobs.ray.io is there; its version is not visible to this account")


def judge_definition(definition: Mapping[str, Any]) -> Finding:
    """Of rayjobs.ray.io: whether it is as new as OLDEST."""
    schemas = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1" and each["served"]]
    if not schemas:
        return Finding.failed(_KUBERAY, "rayjobs.ray.io is not served in v1", INSTALL)
    node: Any = schemas[0]
    for name in ("spec", *OLDEST_FIELD):
        node = (node or {}).get("properties", {}).get(name)
    if node is None:
        return Finding.failed(
            _KUBERAY,
            f"rayjobs.ray.io is older than KubeRay {_dotted(OLDEST)}: it has no {'.'.join(OLDEST_FIELD)}",
            "upgrade the operator and its definitions; helm upgrade leaves the definitions as they are: kubectl apply --server-side them",
        )
    return Finding.ok(_KUBERAY, f"rayjobs.ray.io is served in v1, of KubeRay {_dotted(OLDEST)} or newer")


def _operator(api: Api) -> Finding:
    try:
        return judge_operators(api.operators())
    except Forbidden:
        return Finding.warning(_OPERATOR, "not visible: this account may not list deployments of other namespaces")


def judge_operators(deployments: Sequence[Mapping[str, Any]]) -> Finding:
    if not deployments:
        return Finding.warning(
            _OPERATOR,
            "not visible: no deployment is labelled or named kuberay-operator",
            "where none runs, jobs wait for ever: ask whoever runs the cluster",
        )
    seen = [_version_and_words(deployment) for deployment in deployments]
    words = "; ".join(word for _, word in seen)
    if any(version is not None and version < OLDEST for version, _ in seen):
        return Finding.failed(_OPERATOR, f"older than {_dotted(OLDEST)}: {words}", "upgrade the operator together with its definitions")
    if not any((deployment.get("status") or {}).get("availableReplicas") for deployment in deployments):
        return Finding.failed(_OPERATOR, f"none of its pods is available: {words}", "kubectl describe the deployment: it says why")
    if any(version is None for version, _ in seen):
        return Finding.warning(_OPERATOR, f"its version is not visible in its image's tag: {words}")
    return Finding.ok(_OPERATOR, words)


def _version_and_words(deployment: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str]:
    metadata, containers = deployment["metadata"], deployment["spec"]["template"]["spec"]["containers"]
    image = str(next((each for each in containers if "operator" in each["name"]), containers[0])["image"])
    tag = re.search(r":v?(\d+)\.(\d+)[^/]*$", image.partition("@")[0])
    return (int(tag[1]), int(tag[2])) if tag else None, f"{image} in namespace {metadata['namespace']}"


def _gpus(api: Api, config: JobConfig, backend: KubeRayConfig) -> Finding:
    return judge_gpus(api.gpus_of_nodes(backend.gpu_resource, backend.node_selector), config, backend)


def judge_gpus(nodes: Sequence[int] | None, config: JobConfig, backend: KubeRayConfig) -> Finding:
    """`nodes`: how many each has; a worker's have to be on one."""
    if nodes is None:
        return Finding.warning(_GPUS, "not visible: this account may not list nodes; where there are too few, workers wait for them")
    found = f"{sum(nodes)} {backend.gpu_resource} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    if backend.node_selector:
        found += " with the labels of backend.node_selector"
    room = sum(gpus // config.gpu for gpus in nodes) if config.gpu else config.workers.min
    if room < config.workers.min and backend.autoscaled_nodes:
        return Finding.warning(_GPUS, f"{found}: workers wait for nodes that come", "")
    if room < config.workers.min:
        return Finding.failed(
            _GPUS,
            f"{found}, at most {max(nodes, default=0)} on one: room for {room} of {config.workers.min} workers with gpu={config.gpu}",
            "set workers, gpu, backend.gpu_resource or backend.node_selector to what there is (kubectl describe nodes: Allocatable)",
        )
    if sum(nodes) == 0 and config.gpu is None and config.resources.device != "cpu":
        return Finding.warning(_GPUS, found, "jobs need resources.device=cpu, or another backend.gpu_resource")
    return Finding.ok(_GPUS, found)


def _secret(api: Api, backend: KubeRayConfig) -> Finding:
    if backend.secret is None:
        return Finding.ok(_SECRET, "none is named (backend.secret): pods have no keys but those of their cloud account")
    try:
        there = api.secret_exists(backend.secret)
    except Forbidden:
        return Finding.warning(_SECRET, f"this account may not ask whether {backend.secret} exists")
    if there:
        return Finding.ok(_SECRET, f"{backend.secret} is there")
    return Finding.failed(
        _SECRET,
        f"there is no Secret {backend.secret} in namespace {api.namespace}",
        f"kubectl -n {api.namespace} create secret generic {backend.secret} --from-literal=AWS_ACCESS_KEY_ID=... (or set backend.secret)",
        ExitCode.USAGE,
    )


# the pod


def _probe(api: Api, config: JobConfig, backend: KubeRayConfig, secret: Finding, may_probe: bool, clock: Clock) -> Iterator[Finding]:
    local, without_secret = is_local(config.runs), secret.result is Result.FAILED
    if may_probe:
        # With a secret that is not there no pod starts, and without its keys the store refuses: then the image alone is tried.
        shown = replace(backend, secret=None) if without_secret else backend
        document = probe_pod(config, shown, None if local or without_secret else config.runs)
        answer, remains = run_probe(api, document, clock)
        yield answer if isinstance(answer, Finding) else judge_versions(backend.image, answer.versions)
        if isinstance(answer, ProbeReport) and answer.problem is not None:
            yield judge_store(answer, config.runs)
        if remains:
            yield Finding.warning(f"{_POD} left behind", remains, f"kubectl -n {api.namespace} delete pod {document['metadata']['name']}")
        if isinstance(answer, ProbeReport) and answer.problem == "":
            with suppress(LauncherError):  # for those who submit next; whether the store can be used from here is checked elsewhere
                record_image(open_store(config.runs), backend.image, answer.versions, clock)
    else:
        yield Finding.warning(_POD, "not tried: this account may not create, get and delete pods")
    if local:
        yield Finding.failed(
            _STORE,
            f"pods cannot reach a folder of this machine: {config.runs}",
            "set runs= to object storage that this machine and the cluster's pods reach: s3://bucket/prefix",
            ExitCode.USAGE,
        )
    elif without_secret:
        yield Finding.warning(_STORE, "not tried: the secret is missing")


def probe_pod(config: JobConfig, backend: KubeRayConfig, runs: str | None) -> rayjob.Document:
    """The head's pod with another command, so that it is refused where a head would be."""
    name = _name()
    template = _rayjob(name, config, backend, runs or "")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    container = dict(template["spec"]["containers"][0])
    container |= {
        "name": "probe",
        "command": ["python", "-m", "launcher.runtime.pod.probe", *([runs] if runs else []), "--report", REPORT_FILE],
        "resources": PROBE_RESOURCES,
        "terminationMessagePath": REPORT_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {key: value for key, value in template["spec"].items() if key != "serviceAccountName"}
    # A job's pods have an account of their own, without the credentials for registries that the namespace's default one may lend.
    pod.setdefault("imagePullSecrets", [{"name": name}])
    pod |= {
        "containers": [container],
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "activeDeadlineSeconds": int(PROBE_S),
        "terminationGracePeriodSeconds": 0,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "launcher", "launcher/check": "doctor"}},
        "spec": pod,
    }


def _name() -> str:
    return f"launcher-doctor-{secrets.token_hex(4)}"


def _rayjob(name: str, config: JobConfig, backend: KubeRayConfig, runs: str) -> rayjob.Document:
    """Of a run of this name that is never submitted."""
    spec = JobSpec(
        run_id=RunId(name),
        name=name,
        config=replace(config, backend=backend),
        code=CodeRef(digest=""),
        versions={"ray": "", **installed_versions()},
        submitted_at="",
    )
    return rayjob.rayjob(spec, backend, runs)


def run_probe(api: Api, document: rayjob.Document, clock: Clock) -> tuple[Finding | ProbeReport, str]:
    """The pod's answer, and why the pod could not be deleted, or ""."""
    name = str(document["metadata"]["name"])
    remains = ""
    try:
        answer = _answer(api, document, name, clock)
    except LauncherError as error:
        answer = Finding.of_error(_POD, error)
    finally:
        try:
            api.delete_pod(name)
        except BackendUnavailable as error:
            remains = f"the pod {name} could not be deleted: {error.what}"
    return answer, remains


def _answer(api: Api, document: rayjob.Document, name: str, clock: Clock) -> Finding | ProbeReport:
    api.create_pod(document)
    deadline = clock.monotonic() + PROBE_S
    while True:
        pod = api.find_pod(name)
        if pod is None:
            return Finding.failed(_POD, f"the pod {name} was deleted by somebody else", "find out who deletes pods in this namespace")
        answer = judge_pod(pod)
        if answer is not None:
            return answer
        if clock.monotonic() >= deadline:
            events: list[rayjob.Document] = []
            with suppress(BackendUnavailable):
                events = api.pod_events(name)
            return judge_late(pod, events)
        clock.sleep(PROBE_PACE_S)


def judge_pod(pod: Mapping[str, Any]) -> Finding | ProbeReport | None:
    """What the pod has said, or why it never will; None while it may."""
    status: Any = pod.get("status") or {}
    state: Any = next((each.get("state") or {} for each in status.get("containerStatuses") or ()), {})
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if status.get("phase") == "Succeeded":
        return read_report(str(ended.get("message", "")))
    if status.get("phase") == "Failed":
        return _failed(status, ended)
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in NO_IMAGE:
        return Finding.failed(
            _POD,
            f"the image cannot be had: {reason}: {message}".rstrip(": "),
            "correct backend.image; for a private registry the nodes need its credentials",
            ExitCode.USAGE,
        )
    if reason in NO_CONTAINER:
        return Finding.failed(
            _POD,
            f"the container cannot be made: {reason}: {message}".rstrip(": "),
            "correct what it names: backend.secret, or backend.image",
            ExitCode.USAGE,
        )
    return None


def _failed(status: Mapping[str, Any], ended: Mapping[str, Any]) -> Finding:
    said = str(ended.get("message") or status.get("message") or "").strip()
    reason = str(status.get("reason") or ended.get("reason") or "")
    last = said.splitlines()[-1] if said else ""
    code = ended.get("exitCode")
    words = ": ".join(part for part in (reason, last) if part) or "it says nothing"
    if reason in ("DeadlineExceeded", "Evicted", "Preempted", "NodeLost", "OOMKilled"):
        return Finding.failed(_POD, f"the pod was ended: {words}", "run it again; where it stays so, ask whoever runs the cluster")
    return Finding.failed(
        _POD,
        f"the image does not run the probe{f' (exit code {code})' if code is not None else ''}: {words}",
        "set backend.image to an image with Python and this version of launcher; `python` has to be on its PATH",
        ExitCode.USAGE,
    )


def read_report(line: str) -> Finding | ProbeReport:
    try:
        return parse_report(line)
    except ValueError:
        said = line.strip() or "nothing"
        return Finding.failed(
            _POD, f"the probe said something else than a report: {said}", "set backend.image to an image with this launcher", ExitCode.USAGE
        )


def judge_late(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Finding:
    """Why there is no answer in time: as the scheduler, the node or the last event says."""
    status: Any = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Finding.failed(
                _POD,
                f"no node takes the pod within {PROBE_S:g} s: {condition.get('message', '')}",
                "make room or wait; where nodes have taints, the head needs a node without them",
            )
    state: Any = next((each.get("state") or {} for each in status.get("containerStatuses") or ()), {})
    waiting = state.get("waiting") or {}
    last = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
    words = "; ".join(str(word) for word in (waiting.get("reason"), waiting.get("message"), last.get("message")) if word)
    return Finding.failed(
        _POD,
        f"the pod gave no answer within {PROBE_S:g} s: {words or status.get('phase', 'it is not known why')}",
        "a large image takes longer the first time: run it again",
    )


def judge_store(report: ProbeReport, runs: str) -> Finding:
    if report.problem:
        return Finding.failed(_STORE, report.problem, f"{report.next} ('here' is a pod: its keys are those of backend.secret)")
    return Finding.ok(_STORE, runs)


def judge_versions(image: str, theirs: Mapping[str, str]) -> Finding:
    """The image as this machine would use it."""
    refusal = disagreement(image, installed_versions(), theirs)
    if refusal is not None:
        return Finding.of_error(_POD, refusal)
    return Finding.ok(_POD, f"{image} starts; it has {versions_words(theirs)}")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
