"""A Ray cluster that is there already: a run's supervisor is a job of its Jobs API.

A job's id follows from the run's record alone: the first job of a run has the run's id, the job of a resume has the number of the term
that it begins behind it. So a submission whose answer was lost can be sent again, and every machine asks for the same job.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from launcher.backends.base import LAST_WORDS, Dashboard, Finding, Owner, Placement, Result
from launcher.backends.ray_cluster import checks
from launcher.backends.ray_cluster.jobs_api import OVER, RayApi, RayJob
from launcher.backends.supervisor_command import supervisor_command
from launcher.config.schema import JobConfig, RayConfig
from launcher.core.clock import SystemClock
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.core.store import is_local
from launcher.jobspec.environment import refuse_kubernetes_secrets
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore

RECORD = "launcher/record"
"""The key of a job's metadata that holds where its run is recorded."""
SUBMIT_ATTEMPTS = 2


class RayClusterBackend:
    def place(self, spec: JobSpec) -> Placement:
        backend = _config(spec.config)
        refuse_folder_elsewhere(spec.config)
        refuse_kubernetes_secrets(spec.config)
        api = RayApi(backend)
        api.refuse_other_versions()
        return fit(spec.config, api.address, api.gpus())

    def announce(self, run: RunStore) -> None:
        """Nothing: a run belongs to its Ray job, and to no process of this machine."""

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        api, submission = RayApi(_config(spec.config)), submission_id(run)
        metadata = {"job_name": spec.name, RECORD: run.uri}
        for left in reversed(range(SUBMIT_ATTEMPTS)):
            try:
                api.submit(submission, supervisor_command(run.store.uri, run.run_id), metadata)
                return
            except BackendUnavailable:
                # The job may be there all the same: the answer was lost, or an earlier attempt submitted it.
                if _is_ours(api.job(submission), run):
                    return
                if not left:
                    raise

    def owner(self, run: RunStore) -> Owner:
        try:
            api = _api(run)
            job = api.job(submission_id(run))
        except (BackendUnavailable, ConfigError):
            return Owner.UNKNOWN
        if job is not None:
            return Owner.GONE if job.status in OVER else Owner.ALIVE
        # The submission may still be under way. And an address of this machine may be a tunnel that leads to another cluster today.
        return Owner.UNKNOWN if _awaits_its_job(run) or is_here(api.address) else Owner.GONE

    def reason_pending(self, run: RunStore) -> str:
        try:
            job = _api(run).job(submission_id(run))
        except (BackendUnavailable, ConfigError) as error:
            return error.what
        if job is None:
            return "the Ray cluster has no job of this run: it is being submitted, or the cluster is another one now"
        if job.status == "PENDING":
            return f"its Ray job is pending: {job.message or 'the cluster has not started it'}"
        return "the controller is starting"

    def last_words(self, run: RunStore) -> str:
        try:
            api, submission = _api(run), submission_id(run)
            said = api.log(submission).strip()
            if not said:
                job = api.job(submission)
                said = (job.message if job is not None else None) or ""
        except (BackendUnavailable, ConfigError):
            return ""
        return said[-LAST_WORDS:]

    def remove(self, run: RunStore) -> str:
        submission = submission_id(run)
        try:
            left = _api(run).end(submission, SystemClock())
        except (BackendUnavailable, ConfigError) as error:
            left = error.what
        return f"the Ray job {submission} could not be ended: {left}" if left else ""

    def dashboard(self, run: RunStore) -> Dashboard | None:
        api = _api(run)
        api.version()
        return Dashboard(url=api.address, token_file=api.token.path if api.token else "")

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        for name, check in (("run store", refuse_folder_elsewhere), ("secrets", refuse_kubernetes_secrets)):
            try:
                check(config)
            except ConfigError as error:
                yield Finding.of_error(name, error)
        try:
            api = RayApi(_config(config))
        except ConfigError as error:
            yield Finding.of_error("token", error)
            return
        found = checks.same_ray(api)
        yield found
        if found.result is Result.OK:
            yield checks.room(lambda: fit(config, api.address, api.gpus()))
            yield from checks.probe(api, config)


def fit(config: JobConfig, address: str, nodes: Sequence[int]) -> Placement:
    """Whether a job fits on a cluster. `nodes`: the GPUs of each node, those that other jobs use included."""
    total = sum(nodes)
    wanted = config.gpus_of_worker(total)
    room = sum(gpus // wanted for gpus in nodes) if wanted else config.workers.max
    workers = min(config.workers.max, room)
    where = f"the Ray cluster at {address} ({_counted(len(nodes), 'node')}, {_counted(total, 'GPU')})"
    reason = ""
    if workers < config.workers.min:
        reason = f"there is room for {workers} of {config.workers.min} workers with {wanted} GPU each; there are {total} GPUs in all"
    device = config.device_of_worker(wanted)
    return Placement(fits=not reason, workers=workers, device=device, gpu_per_worker=wanted, where=where, reason=reason)


def refuse_folder_elsewhere(config: JobConfig) -> None:
    """Raises ConfigError for a local record of runs where the cluster is another machine."""
    if is_local(config.runs) and not is_here(_config(config).address):
        raise ConfigError(
            "the cluster cannot reach this record of runs",
            where="runs",
            given=config.runs,
            expected="object storage that this machine and the cluster reach: s3://bucket/prefix",
        )


def submission_id(run: RunStore) -> str:
    """The id of the job that works on a run by its newest desired state."""
    desired = run.desired()
    ended = desired.resumes if desired else None
    return str(run.run_id) if ended is None else f"{run.run_id}-{ended + 1}"


def is_here(address: str) -> bool:
    """Whether the address's host is this machine: a socket here can be bound to it."""
    host = urlsplit(address).hostname or ""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_binds(family, place) for family, _, _, _, place in found)


def _binds(family: int, place: tuple[str | int | bytes, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def _api(run: RunStore) -> RayApi:
    return RayApi(_config(JobSpec.from_json(run.spec(1)).config))


def _config(config: JobConfig) -> RayConfig:
    assert isinstance(config.backend, RayConfig)
    return config.backend


def _is_ours(job: RayJob | None, run: RunStore) -> bool:
    return job is not None and (job.metadata or {}).get(RECORD) == run.uri


def _awaits_its_job(run: RunStore) -> bool:
    """No controller has claimed a term since the run was submitted or resumed."""
    desired = run.desired()
    return desired is not None and run.highest_term() <= (desired.resumes or 0)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
