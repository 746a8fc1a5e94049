"""A Ray cluster of its own for each job, made by the KubeRay operator: a RayJob's life through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from launcher.backends.base import LAST_WORDS, Dashboard, Finding, Owner, Placement
from launcher.backends.kuberay import checks, rayjob
from launcher.backends.kuberay.answers import Pod, RayJob
from launcher.backends.kuberay.job_api import GROUP, VERSION, JobApi
from launcher.backends.kuberay.service_proxy import serve
from launcher.backends.kuberay.settings import check_secrets, check_settings
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.errors import BackendUnavailable, ConfigError, NameTaken
from launcher.core.store import is_local
from launcher.core.types import JsonObject
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore

DASHBOARD_PORT = 8265
OVER = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's jobDeploymentStatus after which nothing of it works any more."""
DELETED_S = 60.0
"""How long to wait until the RayJob of an earlier start is gone."""
RESUMES = "launcher/resumes"
"""Annotation of a RayJob: the term that ended before it, 0 for a run's first. It tells a RayJob that is being replaced from its successor."""
STARTING = ("PodInitializing", "ContainerCreating")
"""Reasons of a waiting container that say only that it starts."""


class KubeRayBackend:
    def __init__(self) -> None:
        self._reached: dict[str, JobApi] = {}
        """By the run's address: an owner is asked for several times a second, and a login may be a program that takes a second."""

    def place(self, spec: JobSpec) -> Placement:
        backend = _config(spec)
        check_settings(backend)
        check_secrets(spec.config, backend.secret)
        _check_job(spec.config)
        api = JobApi(backend)
        api.check()
        _refuse_document(api, spec)
        return _fit(api, spec.config, backend)

    def announce(self, run: RunStore) -> None:
        """Nothing: a run belongs to its RayJob, and to no process of this machine."""

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        backend, name = _config(spec), rayjob.object_name(spec.run_id)
        api = JobApi(backend)
        if api.find(name) is not None:  # of an earlier start of this run, which has ended
            api.delete(name)
            api.wait_until_gone(name, DELETED_S)
        desired = run.desired()
        if desired is not None:  # a resize may have changed the bounds since the spec was written
            spec = replace(spec, config=replace(spec.config, workers=desired.workers))
        try:
            made = api.create(rayjob.rayjob(spec, backend, run.store.uri, {RESUMES: _resumes(run)}))
            for companion in rayjob.companions(spec, _owner_reference(name, made)):
                api.apply_companion(companion)
        except NameTaken:  # the RayJob belongs to somebody else: leave it alone
            raise
        except BaseException:
            with suppress(BackendUnavailable):  # the error that led here is the one to report
                api.delete(name)
            raise

    def owner(self, run: RunStore) -> Owner:
        try:
            found = self._find(run)
        except BackendUnavailable:
            return Owner.UNKNOWN
        # A RayJob that is not there may still be under way, or the context (or its namespace) leads to another cluster today.
        if found is None or found.metadata.annotations.get(RESUMES, "") not in ("", _resumes(run)):
            return Owner.UNKNOWN
        return Owner.GONE if found.status.job_deployment_status in OVER else Owner.ALIVE

    def reason_pending(self, run: RunStore) -> str:
        try:
            found = self._find(run)
        except BackendUnavailable as error:
            return error.what
        if found is None:
            return "there is no RayJob of it: it is being submitted, or it was deleted, or the context leads to another cluster or namespace now"
        said = found.status.message
        try:
            api = self._reach(run)
            pods = api.pods(f"{rayjob.RUN_LABEL}={run.run_id}")
            waiting = "; ".join(why for pod in pods if (why := why_not_ready(pod)))
            # Where there are no pods, something refuses them (a quota, a policy), and an event says what.
            said = waiting or said or ("" if pods else next(iter(api.warnings(run.run_id)), ""))
        except BackendUnavailable as error:
            said = error.what
        if not said and not found.taken_up:
            return "the KubeRay operator has not taken up the RayJob: is it running?"
        return said or f"the RayJob is {found.status.job_deployment_status}; its pods start"

    def last_words(self, run: RunStore) -> str:
        try:
            found = self._find(run)
        except BackendUnavailable:
            return ""
        if found is None:
            return ""
        return ": ".join(part for part in (found.status.reason, found.status.message.strip()[-LAST_WORDS:]) if part)

    def remove(self, run: RunStore) -> str:
        try:
            self._reach(run).delete(rayjob.object_name(run.run_id))
        except BackendUnavailable as error:
            return f"the RayJob {run.run_id} could not be deleted: {error.what}"
        return ""

    def dashboard(self, run: RunStore) -> Dashboard | None:
        try:
            found = self._find(run)
        except BackendUnavailable:
            return None
        if found is None or not found.status.ray_cluster_name or found.status.job_deployment_status in OVER:
            return None  # the cluster is deleted with the job; its name stays in the status
        api, cluster = self._reach(run), found.status.ray_cluster_name
        service, token = f"{cluster}-head-svc", api.secret_value(cluster, "auth_token")
        return Dashboard(
            url=api.service_url(service, DASHBOARD_PORT),
            token_file="",
            tunnel=lambda: serve(lambda *request: api.through_proxy(service, DASHBOARD_PORT, token, *request)),
        )

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        return checks.examine(config)

    def _find(self, run: RunStore) -> RayJob | None:
        try:
            return self._reach(run).find(rayjob.object_name(run.run_id))
        except BackendUnavailable:
            self._reached.pop(run.uri, None)  # a login may have run out: the next call logs in again
            raise

    def _reach(self, run: RunStore) -> JobApi:
        if run.uri not in self._reached:
            self._reached[run.uri] = JobApi(_config(_spec(run)))
        return self._reached[run.uri]


def why_not_ready(pod: Pod) -> str:
    """Why a pod does not run yet, in the words of the scheduler or of its node; "" where it runs or just starts."""
    if pod.status.phase != "Pending":
        return ""
    if (why := pod.unschedulable) is not None:
        return f"pod {pod.metadata.name}: {why}"
    for container in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        waiting = container.state.waiting
        if waiting is not None and waiting.reason not in STARTING:
            return f"pod {pod.metadata.name}: {waiting.reason}: {waiting.message}".rstrip(": ")
    return ""


def _check_job(config: JobConfig) -> None:
    """Raises ConfigError for a job that no cluster could run."""
    if is_local(config.runs):
        raise ConfigError(
            "the cluster cannot reach this record of runs",
            where="runs",
            given=config.runs,
            expected="object storage that this machine and the cluster's pods reach: s3://bucket/prefix",
        )
    if config.gpu is None and config.resources.device != "cpu":
        raise ConfigError(
            "it does not say how many GPUs a worker takes", where="gpu", given="null", expected="gpu=1, or resources.device=cpu"
        )


def _refuse_document(api: JobApi, spec: JobSpec) -> None:
    """Raises ConfigError where this cluster would not take the RayJob of this job."""
    backend = _config(spec)
    refusal = api.refusal(rayjob.rayjob(spec, backend, spec.config.runs))
    if not refusal:
        return
    of_overlay = bool(backend.overlay) and "workerGroupSpecs[0].template" in refusal
    raise ConfigError(
        "the cluster refuses the RayJob of this job",
        where="backend.overlay" if of_overlay else "backend",
        given=refusal,
        expected="a pod template: workerGroupSpecs[0].template is what the overlay is merged into" if of_overlay else "",
        next="" if of_overlay else "`launch doctor` looks at the operator and its version",
    )


def _fit(api: JobApi, config: JobConfig, backend: KubeRayConfig) -> Placement:
    """Whether the job fits on the nodes that are there now; a worker's GPUs have to be on one node."""
    gpu = config.gpu or 0
    nodes = api.gpus_of_nodes(backend.gpu_resource, backend.node_selector) if gpu else None
    where = f"namespace {api.namespace} of {api.server}"
    reason, workers = "", config.workers.max
    if nodes is not None:
        workers = min(workers, sum(count // gpu for count in nodes))
        where += f" ({sum(nodes)} {backend.gpu_resource} on {len(nodes)} nodes)"
        if workers < config.workers.min and not backend.autoscaled_nodes:
            reason = (
                f"{config.workers.min} workers with {gpu} {backend.gpu_resource} each, of one node; the nodes have room for {workers}. "
                "Where nodes come when pods wait for them: backend.autoscaled_nodes=true"
            )
    device = config.device_of_worker(gpu)
    return Placement(fits=not reason, workers=workers, device=device, gpu_per_worker=gpu, where=where, reason=reason)


def _owner_reference(name: str, made: RayJob) -> JsonObject:
    """Makes Kubernetes delete an object together with the RayJob."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "RayJob",
        "name": name,
        "uid": made.metadata.uid,
        "blockOwnerDeletion": False,
    }


def _spec(run: RunStore) -> JobSpec:
    return JobSpec.from_json(run.spec(1))


def _config(spec: JobSpec) -> KubeRayConfig:
    assert isinstance(spec.config.backend, KubeRayConfig)
    return spec.config.backend


def _resumes(run: RunStore) -> str:
    """The value of RESUMES for the RayJob that the newest desired state asks for."""
    desired = run.desired()
    return str((desired.resumes if desired is not None else None) or 0)
