"""Ending a run: the desired state first, then, where no controller lives to act on it, the closing itself."""

from __future__ import annotations

from dataclasses import replace

from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.jobs.closing import close
from launcher.jobs.observe import POLL_S, Seen, backend_of, observe
from launcher.jobs.refs import RunRef, person
from launcher.jobs.snapshot import as_written, read_snapshot
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus

_ATTEMPTS = 20


def stop(ref: RunRef, *, clock: Clock | None = None) -> RunStatus:
    """Ask a run to save a checkpoint and end. Returns what is so now: a living controller takes a moment (see `watch`).

    A run without a living controller is closed as STOPPED here, and what the backend still holds of it is removed. A
    run that has ended is left as it is: asking for what is so already is no error.
    """
    clock = clock or SystemClock()
    run = ref.open()
    written = read_snapshot(run)
    if written.ended:
        return as_written(written, ref.name, ref.run_id)
    _ask_to_stop(run, clock)
    for _ in range(_ATTEMPTS):
        seen = observe(ref, clock=clock, closing=False)
        if seen.status.state not in (JobState.PENDING, JobState.LOST) or _close(ref, run, seen, clock):
            break
        clock.sleep(POLL_S)
    return observe(ref, clock=clock).status


def _close(ref: RunRef, run: RunStore, seen: Seen, clock: Clock) -> bool:
    remains = backend_of(run).remove(run)
    snapshot = read_snapshot(run)
    if snapshot.ended:
        return True
    reason = f"stopped by {person()}" + ("" if seen.snapshot.pending else "; its controller gave no sign of life")
    if remains:
        reason += f"; {remains}"
    return close(ref, run, snapshot, state=JobState.STOPPED, reason=reason, clock=clock)


def _ask_to_stop(run: RunStore, clock: Clock) -> None:
    while True:
        desired = read_snapshot(run).desired
        if desired.state == "stopped":
            return
        wanted = replace(desired, revision=desired.revision + 1, state="stopped", by=person(), at=timestamp(clock.now()))
        if run.create_desired(wanted):
            return
