"""What the probe's pod tells: its report, or why there is none. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.backends.base import Finding
from launcher.backends.kuberay.answers import ContainerState, Event, Pod, PodStatus, Terminated, Waiting
from launcher.backends.probe_report import ProbeReport, parse_report, versions_words
from launcher.core.exit_codes import ExitCode
from launcher.jobspec.versions import disagreement, installed_versions

POD, STORE = "pod", "run store from a pod"
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")
NO_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
ENDED_BY_OTHERS = ("DeadlineExceeded", "Evicted", "Preempted", "NodeLost", "OOMKilled")


def judge_pod(pod: Pod) -> Finding | ProbeReport | None:
    """The pod's report, or why there will never be one; None while there may be one."""
    state = _state(pod)
    waiting, ended = state.waiting or Waiting(), state.terminated or Terminated()
    if pod.status.phase == "Succeeded":
        return read_report(ended.message)
    if pod.status.phase == "Failed":
        return _failed(pod.status, ended)
    if waiting.reason in NO_IMAGE:
        return Finding.failed(
            POD,
            f"the image cannot be had: {waiting.reason}: {waiting.message}".rstrip(": "),
            "correct backend.image; for a private registry the nodes need its credentials",
            ExitCode.USAGE,
        )
    if waiting.reason in NO_CONTAINER:
        return Finding.failed(
            POD,
            f"the container cannot be made: {waiting.reason}: {waiting.message}".rstrip(": "),
            "correct what it names: backend.secret, or backend.image",
            ExitCode.USAGE,
        )
    return None


def read_report(line: str) -> Finding | ProbeReport:
    try:
        return parse_report(line)
    except ValueError:
        said = line.strip() or "nothing"
        return Finding.failed(
            POD, f"the probe said something else than a report: {said}", "set backend.image to an image with this launcher", ExitCode.USAGE
        )


def judge_late(pod: Pod, events: Sequence[Event], patience_s: float) -> Finding:
    """Why there is no answer within `patience_s`, in the words of the scheduler, the node or the last event."""
    if (why := pod.unschedulable) is not None:
        return Finding.failed(
            POD,
            f"no node takes the pod within {patience_s:g} s: {why}",
            "make room or wait; where nodes have taints, the head needs a node without them",
        )
    waiting = _state(pod).waiting or Waiting()
    last = max(events, key=lambda event: event.time, default=Event())
    words = "; ".join(word for word in (waiting.reason, waiting.message, last.message) if word)
    return Finding.failed(
        POD,
        f"the pod gave no answer within {patience_s:g} s: {words or pod.status.phase or 'it is not known why'}",
        "a large image takes longer the first time: run it again",
    )


def judge_versions(image: str, theirs: Mapping[str, str]) -> Finding:
    """Whether a job of this machine would accept the image."""
    refusal = disagreement(image, installed_versions(), theirs)
    if refusal is not None:
        return Finding.of_error(POD, refusal)
    return Finding.ok(POD, f"{image} starts; it has {versions_words(theirs)}")


def judge_store(report: ProbeReport, runs: str) -> Finding:
    if report.problem:
        return Finding.failed(STORE, report.problem, f"{report.next} ('here' is a pod: its keys are those of backend.secret)")
    return Finding.ok(STORE, runs)


def _failed(status: PodStatus, ended: Terminated) -> Finding:
    said = (ended.message or status.message).strip()
    reason = status.reason or ended.reason
    last = said.splitlines()[-1] if said else ""
    words = ": ".join(part for part in (reason, last) if part) or "it says nothing"
    if reason in ENDED_BY_OTHERS:
        return Finding.failed(POD, f"the pod was ended: {words}", "run it again; where it stays so, ask whoever runs the cluster")
    code = f" (exit code {ended.exit_code})" if ended.exit_code is not None else ""
    return Finding.failed(
        POD,
        f"the image does not run the probe{code}: {words}",
        "set backend.image to an image with Python and this version of launcher; `python` has to be on its PATH",
        ExitCode.USAGE,
    )


def _state(pod: Pod) -> ContainerState:
    """Of the pod's one container."""
    statuses = pod.status.container_statuses
    return statuses[0].state if statuses else ContainerState()
