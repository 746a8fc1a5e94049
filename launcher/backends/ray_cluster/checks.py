"""What a job on an existing Ray cluster needs, checked before there is one."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress

from launcher.backends.base import Finding, Placement
from launcher.backends.probe_report import ProbeReport, parse_report, versions_words
from launcher.backends.ray_cluster.jobs_api import OVER, POLL_S, RayApi
from launcher.config.schema import JobConfig
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import BackendUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.store import is_local
from launcher.jobspec.versions import compare, installed_versions

PROBE_S = 90.0
"""From the probe's submission to its end: the first job on a cluster waits for a worker process of Ray, and the probe for its imports."""
LAST_WORDS = 400
"""Characters from the end of what a failed probe printed."""
_RAY, _ROOM, _JOB, _VERSIONS, _STORE = "Ray there", "room", "a job there", "versions there", "run store from there"


def same_ray(api: RayApi) -> Finding:
    try:
        api.refuse_other_versions()
    except BackendUnavailable as error:
        return Finding.of_error(_RAY, error)
    return Finding.ok(_RAY, f"{api.address} answers, with the Ray of this launcher")


def room(place: Callable[[], Placement]) -> Finding:
    try:
        placement = place()
    except BackendUnavailable as error:
        return Finding.of_error(_ROOM, error)
    if not placement.fits:
        return Finding.failed(_ROOM, placement.reason, "add nodes to the cluster, or ask for fewer with workers= or gpu=")
    each = f" with {placement.gpu_per_worker} GPU each" if placement.gpu_per_worker else ""
    return Finding.ok(_ROOM, f"{placement.where}: {placement.workers} worker{'' if placement.workers == 1 else 's'}{each}")


def probe(api: RayApi, config: JobConfig, clock: Clock | None = None) -> Iterator[Finding]:
    """A short job on the cluster tells which versions are installed there and whether the run store can be used from there."""
    name = f"launcher-doctor-{secrets.token_hex(4)}"
    try:
        answer = _answer(api, name, None if is_local(config.runs) else config.runs, clock or SystemClock())
    except BackendUnavailable as error:
        answer = Finding.of_error(_JOB, error)
    if isinstance(answer, Finding):
        yield answer
    else:
        yield judge_versions(answer.versions)
        if answer.problem is not None:
            yield judge_store(answer, config.runs)
    try:
        api.delete(name)
    except BackendUnavailable as error:
        yield Finding.warning(f"{_JOB} left behind", f"{name}: {error.what}", "delete it in the dashboard of the cluster")


def _answer(api: RayApi, name: str, runs: str | None, clock: Clock) -> Finding | ProbeReport:
    words = ["python", "-m", "launcher.runtime.pod.probe", *([runs] if runs else [])]
    try:
        api.submit(name, shlex.join(words), {"job_name": name})
        return _report(api, name, clock)
    except BaseException:  # also where a person interrupts it: the job must not stay
        with suppress(BackendUnavailable):
            api.end(name, clock)
            api.delete(name)
        raise


def _report(api: RayApi, name: str, clock: Clock) -> Finding | ProbeReport:
    deadline = clock.monotonic() + PROBE_S
    while (job := api.job(name)) is not None and job.status not in OVER:
        if clock.monotonic() >= deadline:
            api.end(name, clock)  # Ray does not delete a job that runs
            return Finding.failed(_JOB, f"not done after {PROBE_S:.0f} s: {job.status}, {job.message}", "look into the cluster's dashboard")
        clock.sleep(POLL_S)
    return judge_log(api.log(name), (job.message if job is not None else None) or "")


def judge_log(log: str, message: str) -> Finding | ProbeReport:
    """The report is the last line of the log that is one: Ray prints lines of its own. `message`: Ray's, where there is no log."""
    for line in reversed(log.splitlines()):
        with suppress(ValueError):
            return parse_report(line)
    said = log.strip() or message
    return Finding.failed(
        _JOB,
        f"a job there cannot start launcher: {said[-LAST_WORDS:]}",
        "install launcher, Ray and torch of the versions here for the `python` of every node",
    )


def judge_versions(theirs: dict[str, str]) -> Finding:
    ours = installed_versions()
    differences = compare(ours, theirs)
    if differences:
        return Finding.failed(_VERSIONS, ", ".join(differences), "install the same versions here and on the cluster", ExitCode.USAGE)
    return Finding.ok(_VERSIONS, versions_words(theirs))


def judge_store(report: ProbeReport, runs: str) -> Finding:
    if report.problem:
        keys = "the keys come from the environment that the head was started in"
        return Finding.failed(_STORE, report.problem, f"{report.next}; {keys}" if report.next else keys)
    return Finding.ok(_STORE, runs)
