"""A pod with the image, the secret and the restrictions of a job's head, which runs the probe (launcher.runtime.pod.probe) and goes.

Only a pod can tell that the image can be pulled, what is installed in it, and that the run store is reached from there.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from launcher.backends.base import Finding
from launcher.backends.kuberay import rayjob
from launcher.backends.kuberay.answers import Event
from launcher.backends.kuberay.checks_api import ChecksApi
from launcher.backends.kuberay.probe_findings import POD, judge_late, judge_pod
from launcher.backends.probe_report import ProbeReport
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import Clock
from launcher.core.errors import BackendUnavailable, LauncherError
from launcher.core.types import Json, JsonObject, RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.versions import installed_versions

PROBE_S = 90.0
"""From the pod's creation to its answer; the probe waits for a run store for half of it at most."""
PROBE_PACE_S = 0.5
REPORT_FILE = "/dev/termination-log"
"""Kubernetes copies this file into the pod's status, so that no right to read logs is needed."""
PROBE_RESOURCES: JsonObject = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}


@dataclass(frozen=True)
class Probe:
    """What came of a probe."""

    answer: Finding | ProbeReport
    """The report, or why there is none."""
    left_behind: str
    """Why the pod could not be deleted; "" where it is gone."""


def probe_name() -> str:
    return f"launcher-doctor-{secrets.token_hex(4)}"


def never_submitted(name: str, config: JobConfig, backend: KubeRayConfig) -> JobSpec:
    """The spec of a run of this name, for documents that are tried and not kept."""
    return JobSpec(
        run_id=RunId(name),
        name=name,
        config=replace(config, backend=backend),
        code=CodeRef(digest=""),
        versions={"ray": "", **installed_versions()},
        submitted_at="",
    )


def probe_pod(name: str, config: JobConfig, backend: KubeRayConfig, runs: str | None) -> JsonObject:
    """The head's pod with another command, so that it is refused where a head would be. `runs`: the run store to try, None for none."""
    command: list[Json] = ["python", "-m", "launcher.runtime.pod.probe", *([runs] if runs else []), "--report", REPORT_FILE]
    container: JsonObject = {
        **rayjob.head_container(config, backend),
        "name": "probe",
        "command": command,
        "resources": PROBE_RESOURCES,
        "terminationMessagePath": REPORT_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod: JsonObject = {
        # The pods of a job have an account of their own, without the registry credentials that the namespace's default account may have.
        # A pull secret of a name that does not exist keeps Kubernetes from adding those of the default account.
        "imagePullSecrets": [{"name": name}],
        **rayjob.head_pod(never_submitted(name, config, backend), backend, container),
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "activeDeadlineSeconds": int(PROBE_S),
        "terminationGracePeriodSeconds": 0,
    }
    del pod["serviceAccountName"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "launcher", "launcher/check": "doctor"}},
        "spec": pod,
    }


def run_probe(api: ChecksApi, name: str, document: JsonObject, clock: Clock) -> Probe:
    """Create the pod, wait for its answer for at most PROBE_S, and delete it, also where a person interrupts the wait."""
    left_behind = ""
    try:
        answer = _answer(api, name, document, clock)
    except LauncherError as error:
        answer = Finding.of_error(POD, error)
    finally:
        try:
            api.delete_pod(name)
        except BackendUnavailable as error:
            left_behind = f"the pod {name} could not be deleted: {error.what}"
    return Probe(answer, left_behind)


def _answer(api: ChecksApi, name: str, document: JsonObject, clock: Clock) -> Finding | ProbeReport:
    api.create_pod(document)
    deadline = clock.monotonic() + PROBE_S
    while True:
        pod = api.find_pod(name)
        if pod is None:
            return Finding.failed(POD, f"the pod {name} was deleted by somebody else", "find out who deletes pods in this namespace")
        answer = judge_pod(pod)
        if answer is not None:
            return answer
        if clock.monotonic() >= deadline:
            events: Sequence[Event] = ()
            with suppress(BackendUnavailable):
                events = api.pod_events(name)
            return judge_late(pod, events, PROBE_S)
        clock.sleep(PROBE_PACE_S)
