"""A Ray cluster of its own for each job, by the KubeRay operator: a RayJob's life through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from launcher.backends.base import LAST_WORDS, Dashboard, Finding, Owner, Placement
from launcher.backends.kuberay import checks as kubernetes_checks
from launcher.backends.kuberay import rayjob
from launcher.backends.kuberay.kubernetes_api import GROUP, VERSION, KubernetesApi
from launcher.backends.kuberay.service_proxy import serve
from launcher.backends.kuberay.settings import check_settings
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.errors import BackendUnavailable, ConfigError, NameTaken
from launcher.core.store import is_local
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore

DASHBOARD_PORT = 8265
OVER = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's jobDeploymentStatus after which nothing of it works any more."""
DELETED_S = 60.0
RESUMES = "launcher/resumes"
"""Annotation of a RayJob: which term ended before it, 0 before the first. So a RayJob that is being replaced is told from its successor."""


class KubeRayBackend:
    """Which cluster and namespace: as the run's spec says."""

    def __init__(self) -> None:
        self._reached: dict[str, KubernetesApi] = {}

    def place(self, spec: JobSpec) -> Placement:
        check_settings(_config(spec))
        given = spec.config
        if is_local(given.runs):
            raise ConfigError(
                "the cluster cannot reach this record of runs",
                where="runs",
                given=given.runs,
                expected="object storage that this machine and the cluster's pods reach: s3://bucket/prefix",
            )
        if given.gpu is None and given.resources.device != "cpu":
            raise ConfigError(
                "it does not say how many GPUs a worker takes", where="gpu", given="null", expected="gpu=1, or resources.device=cpu"
            )
        backend = _config(spec)
        api = KubernetesApi(backend)
        api.check()
        if refusal := api.refusal(rayjob.rayjob(spec, backend, given.runs)):
            of_overlay = bool(backend.overlay) and "workerGroupSpecs[0].template" in refusal
            raise ConfigError(
                "the cluster refuses the RayJob of this job",
                where="backend.overlay" if of_overlay else "backend",
                given=refusal,
                expected="a pod template: workerGroupSpecs[0].template is what the overlay is merged into" if of_overlay else "",
                next="" if of_overlay else "`launch doctor` looks at the operator and its version",
            )
        gpu = given.gpu or 0
        device = given.device_of_worker(gpu)
        nodes = api.gpus_of_nodes(backend.gpu_resource, backend.node_selector) if gpu else None
        where = f"namespace {api.namespace} of {api.server}"
        reason, workers = "", given.workers.max
        if nodes is not None:
            workers = min(workers, sum(count // gpu for count in nodes))
            where += f" ({sum(nodes)} {backend.gpu_resource} on {len(nodes)} nodes)"
            if workers < given.workers.min and not backend.autoscaled_nodes:
                reason = (
                    f"{given.workers.min} workers with {gpu} {backend.gpu_resource} each, of one node; the nodes have room for {workers}. "
                    "Where nodes come when pods wait for them: backend.autoscaled_nodes=true"
                )
        return Placement(fits=not reason, workers=workers, device=device, gpu_per_worker=gpu, where=where, reason=reason)

    def announce(self, run: RunStore) -> None:
        """Nothing: before its RayJob is there, nobody owns a run."""

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        api = KubernetesApi(_config(spec))
        name = rayjob.object_name(spec.run_id)
        if api.find(name) is not None:  # of an earlier start: the run goes on where that one ended, or was given up
            api.delete(name)
            api.wait_until_gone(name, DELETED_S)
        desired = run.desired()
        if desired is not None:  # a resize may have changed the bounds since the spec was written
            spec = replace(spec, config=replace(spec.config, workers=desired.workers))
        document = rayjob.rayjob(spec, _config(spec), run.store.uri)
        document["metadata"]["annotations"][RESUMES] = _resumes(run)
        try:
            made = api.create(document)
            owner = {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "RayJob",
                "name": name,
                "uid": made["metadata"]["uid"],
                "blockOwnerDeletion": False,
            }
            for companion in rayjob.companions(spec, owner):
                api.apply_companion(companion)
        except NameTaken:  # it is another's
            raise
        except BaseException:
            with suppress(BackendUnavailable):  # the error that led here is the one to tell
                api.delete(name)
            raise

    def owner(self, run: RunStore) -> Owner:
        try:
            found = self._find(run)
        except BackendUnavailable:
            return Owner.UNKNOWN
        # What is not there may be on its way still; and a context, or the namespace that it names, may lead elsewhere today.
        if found is None or _annotation(found, RESUMES) not in ("", _resumes(run)):
            return Owner.UNKNOWN
        return Owner.GONE if _phase(found) in OVER else Owner.ALIVE

    def reason_pending(self, run: RunStore) -> str:
        try:
            found = self._find(run)
        except BackendUnavailable as error:
            return error.what
        if found is None:
            return "there is no RayJob of it: it is being submitted, or it was deleted, or the context leads to another cluster or namespace now"
        status: Any = found.get("status") or {}
        said = str(status.get("message") or "")
        try:
            api = self._reach(run)
            pods = api.pods(f"{rayjob.RUN_LABEL}={run.run_id}")
            waiting = "; ".join(why for pod in pods if (why := _why_not_ready(pod)))
            # Without pods something refuses them: a quota, a policy, an operator that is not there.
            said = waiting or said or ("" if pods else next(iter(api.warnings(run.run_id)), ""))
        except BackendUnavailable as error:
            said = error.what
        if not said and not status:
            return "the KubeRay operator has not taken up the RayJob: is it running?"
        return said or f"the RayJob is {_phase(found)}; its pods start"

    def last_words(self, run: RunStore) -> str:
        try:
            found = self._find(run)
        except BackendUnavailable:
            return ""
        status: Any = (found or {}).get("status", {})
        return ": ".join(part for part in (status.get("reason", ""), str(status.get("message", "")).strip()[-LAST_WORDS:]) if part)

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
        cluster = ((found or {}).get("status") or {}).get("rayClusterName")
        if not cluster or _phase(found) in OVER:  # the cluster goes with the job, its name stays
            return None
        api = self._reach(run)
        service = f"{cluster}-head-svc"
        token = api.secret_value(cluster, "auth_token")
        return Dashboard(
            url=api.service_url(service, DASHBOARD_PORT),
            token_file="",
            tunnel=lambda: serve(lambda *request: api.through_proxy(service, DASHBOARD_PORT, token, *request)),
        )

    def _find(self, run: RunStore) -> Any:
        """The RayJob of a run, or None. What fails once is reached anew the next time: a login may have run out."""
        try:
            return self._reach(run).find(rayjob.object_name(run.run_id))
        except BackendUnavailable:
            self._reached.pop(run.uri, None)
            raise

    def _reach(self, run: RunStore) -> KubernetesApi:
        """Kept, because a look is taken several times a second, and a login may be a program that runs for a second."""
        if run.uri not in self._reached:
            self._reached[run.uri] = KubernetesApi(_config(_spec(run)))
        return self._reached[run.uri]

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        return kubernetes_checks.examine(config)


def _spec(run: RunStore) -> JobSpec:
    return JobSpec.from_json(run.spec(1))


def _config(spec: JobSpec) -> KubeRayConfig:
    assert isinstance(spec.config.backend, KubeRayConfig)
    return spec.config.backend


def _resumes(run: RunStore) -> str:
    desired = run.desired()
    return str((desired.resumes if desired is not None else None) or 0)


def _annotation(job: Any, name: str) -> str:
    return str((job["metadata"].get("annotations") or {}).get(name, ""))


def _phase(job: Any) -> str:
    return str((job.get("status") or {}).get("jobDeploymentStatus", ""))


def _why_not_ready(pod: Any) -> str:
    """Why a pod does not run yet, in the words of the scheduler or of its node."""
    status = pod.status
    if status.phase != "Pending":
        return ""
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"pod {pod.metadata.name}: {condition.message}"
    for container in [*(status.init_container_statuses or ()), *(status.container_statuses or ())]:
        waiting = container.state.waiting
        if waiting is not None and waiting.reason not in ("PodInitializing", "ContainerCreating"):
            return f"pod {pod.metadata.name}: {waiting.reason}: {waiting.message or ''}".rstrip(": ")
    return ""
