"""The state of the run as people see it, from the state of the worker group. Pure, but for the clock that is handed in."""

from __future__ import annotations

from launcher.core.exit_codes import ExitCode
from launcher.record.status import JobState
from launcher.runtime.protocol.events import Failed
from launcher.runtime.protocol.group import Group, Phase


def trains(group: Group) -> bool:
    """A generation does steps, and no committed change ends it."""
    changing = group.proposal is not None and group.proposal.committed is not None
    return group.phase is Phase.TRAINING and not changing and not group.held


def describe(group: Group, waiting_for: str) -> tuple[JobState, str]:
    """State and reason; `waiting_for`: the capacity that is missing, in words."""
    waits = f"waits for {waiting_for}" if waiting_for else ""
    if group.stopping:
        return JobState.STOPPING, "asked to stop"
    if trains(group):
        return JobState.RUNNING, ""
    if group.phase is Phase.ASSEMBLING:
        return JobState.STARTING, waits or "workers start"
    if group.held:
        held = f"{len(group.ranks)} of at least {group.minimum} workers are left; the state is saved and held"
        return JobState.RESIZING, f"{held}; {waits}" if waits else held
    return JobState.RESIZING, "a new generation of workers is being formed"


class CapacityDeadline:
    """How long a run may be without a generation at work before it fails."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def look(self, group: Group, waiting_for: str, now: float, *, warming: bool) -> Failed | None:
        """`warming`: a worker has its place and builds the job, so that there is capacity. `now`: monotonic seconds."""
        if trains(group) or warming or group.phase is Phase.ENDED:
            self._since = None
        elif self._since is None:
            self._since = now
        if self._since is None or now - self._since <= self._limit_s:
            return None
        why = f"waits for {waiting_for}" if waiting_for else "the workers that are left form no generation"
        return Failed(f"no capacity within {self._limit_s:g} s (elastic.capacity_timeout_s): {why}", ExitCode.INFRASTRUCTURE)
