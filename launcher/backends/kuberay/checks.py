"""What a job on Kubernetes needs, checked one thing after the other before there is one: what `launch doctor` says, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from launcher.backends.base import Finding, Result
from launcher.backends.kuberay import rayjob
from launcher.backends.kuberay.checks_api import ChecksApi
from launcher.backends.kuberay.kubernetes_api import Forbidden
from launcher.backends.kuberay.operator_checks import KUBERAY, OPERATOR, examine_definitions, examine_operator
from launcher.backends.kuberay.permissions import examine_rights
from launcher.backends.kuberay.probe_findings import POD, STORE, judge_store, judge_versions
from launcher.backends.kuberay.probe_pod import never_submitted, probe_name, probe_pod, run_probe
from launcher.backends.kuberay.settings import check_secrets, check_settings
from launcher.backends.probe_report import ProbeReport
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import BackendUnavailable, ConfigError, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.store import is_local, open_store
from launcher.jobspec.versions import record_image

_SETTINGS, _CLUSTER, _NAMESPACE, _GPUS, _SECRET, _JOB = "settings", "cluster", "namespace", "GPUs", "secret", "RayJob"


def examine(
    config: JobConfig, *, open_api: Callable[[KubeRayConfig], ChecksApi] = ChecksApi, clock: Clock | None = None
) -> Iterator[Finding]:
    """The findings in order; ends early where the checks that follow could tell nothing."""
    backend = config.backend
    assert isinstance(backend, KubeRayConfig)
    try:
        check_settings(backend)
        check_secrets(config, backend.secret)
    except ConfigError as error:
        yield Finding.of_error(_SETTINGS, error)
        return
    try:
        api = open_api(backend)
    except BackendUnavailable as error:
        found = Finding.of_error(_CLUSTER, error)
        # A context that the configuration names and the kubeconfig lacks is a mistake; without any kubeconfig the cluster is missing.
        yield replace(found, exit_code=ExitCode.USAGE) if backend.context is not None else found
        return
    for name, check in ((_CLUSTER, _reach), (_NAMESPACE, _namespace)):
        finding = _as_finding(name, partial(check, api))
        yield finding
        if finding.result is Result.FAILED:
            return
    rights = examine_rights(api)
    yield rights.needed
    yield rights.further
    yield _as_finding(KUBERAY, lambda: examine_definitions(api))
    yield _as_finding(OPERATOR, lambda: examine_operator(api))
    yield _as_finding(_GPUS, lambda: _gpus(api, config, backend))
    secret = _as_finding(_SECRET, lambda: _secret(api, backend))
    yield secret
    yield from _refusal(api, config, backend)
    yield from _from_a_pod(api, config, backend, has_secret=secret.result is not Result.FAILED, may_probe=rights.may_probe, clock=clock)


def _as_finding(name: str, check: Callable[[], Finding]) -> Finding:
    """What the check finds; an error in it is a finding too."""
    try:
        return check()
    except LauncherError as error:
        return Finding.of_error(name, error)


def _reach(api: ChecksApi) -> Finding:
    return Finding.ok(_CLUSTER, f"Kubernetes {api.server_version()} at {api.server} (context {api.context})")


def _namespace(api: ChecksApi) -> Finding:
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


def _gpus(api: ChecksApi, config: JobConfig, backend: KubeRayConfig) -> Finding:
    return judge_gpus(api.gpus_of_nodes(backend.gpu_resource, backend.node_selector), config, backend)


def judge_gpus(nodes: Sequence[int] | None, config: JobConfig, backend: KubeRayConfig) -> Finding:
    """`nodes`: the GPUs of each node, None where nodes cannot be listed; a worker's GPUs have to be on one node."""
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


def _secret(api: ChecksApi, backend: KubeRayConfig) -> Finding:
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


def _refusal(api: ChecksApi, config: JobConfig, backend: KubeRayConfig) -> Iterator[Finding]:
    """A finding where the cluster would refuse the RayJob. No refusal is no finding: the account may lack the right to ask."""
    document = rayjob.rayjob(never_submitted(probe_name(), config, backend), backend, config.runs)
    if refusal := api.refusal(document):
        yield Finding.failed(_JOB, f"the cluster would refuse it: {refusal}", "change what it names: keys of backend", ExitCode.USAGE)


def _from_a_pod(
    api: ChecksApi, config: JobConfig, backend: KubeRayConfig, *, has_secret: bool, may_probe: bool, clock: Clock | None
) -> Iterator[Finding]:
    """What only a pod can tell: the image, the versions in it, and the run store as it is reached from there."""
    local = is_local(config.runs)
    if may_probe:
        yield from _probe(api, config, backend, has_secret=has_secret, with_store=has_secret and not local, clock=clock or SystemClock())
    else:
        yield Finding.warning(POD, "not tried: this account may not create, get and delete pods")
    if local:
        yield Finding.failed(
            STORE,
            f"pods cannot reach a folder of this machine: {config.runs}",
            "set runs= to object storage that this machine and the cluster's pods reach: s3://bucket/prefix",
            ExitCode.USAGE,
        )
    elif not has_secret:
        yield Finding.warning(STORE, "not tried: the secret is missing")


def _probe(
    api: ChecksApi, config: JobConfig, backend: KubeRayConfig, *, has_secret: bool, with_store: bool, clock: Clock
) -> Iterator[Finding]:
    # With a secret that does not exist no pod starts, so the image is tried without it.
    tried, name = backend if has_secret else replace(backend, secret=None), probe_name()
    probe = run_probe(api, name, probe_pod(name, config, tried, config.runs if with_store else None), clock)
    report = probe.answer if isinstance(probe.answer, ProbeReport) else None
    yield probe.answer if isinstance(probe.answer, Finding) else judge_versions(backend.image, probe.answer.versions)
    if report is not None and report.problem is not None:
        yield judge_store(report, config.runs)
    if probe.left_behind:
        yield Finding.warning(f"{POD} left behind", probe.left_behind, f"kubectl -n {api.namespace} delete pod {name}")
    if report is not None and report.problem == "":
        with suppress(LauncherError):  # it only saves the next submit a look; another check tells whether this machine reaches the store
            record_image(open_store(config.runs), backend.image, report.versions, clock)
