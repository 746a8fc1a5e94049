"""Changing the size of a run: the request, within what its batch allows, and the wait until the group has that size or says why not.

A request is a new revision of the desired state; the run's controller, or the next one, works towards it. Nothing is
undone by ending the wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from launcher.config.schema import JobConfig
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import ConfigError, RunStateError
from launcher.jobs.changes import size_words, workers_words
from launcher.jobs.observe import POLL_S, Observation, observe
from launcher.jobs.refs import RunRef, person
from launcher.jobs.resuming import spec_in_force
from launcher.jobs.snapshot import read_snapshot
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus

WAIT_S = 120.0
"""A wait ends after so long, whatever the run says; the desired state stays as it is."""
_SIZE = re.compile(r"([0-9]+)(?:\.\.([0-9]+))?")


@dataclass(frozen=True)
class SizeRequest:
    """What was asked of a run's size, and what was in force before."""

    workers: WorkerBounds
    before: WorkerBounds
    revision: int

    @property
    def changed(self) -> bool:
        return self.workers != self.before


@dataclass(frozen=True)
class Waited:
    """One look of a wait."""

    status: RunStatus
    over: bool
    why: str = ""
    """When it is over: why the size is not there; "" where it is."""


def resize(ref: RunRef, size: int | str, *, clock: Clock | None = None) -> SizeRequest:
    """Ask a run for another size: 3 sets the target within the bounds in force, "2..6" the bounds and the target to the upper one.

    The same as in force writes nothing. Raises ConfigError for a size that the run cannot have, RunStateError for a run
    that has ended or is asked to stop.
    """
    clock = clock or SystemClock()
    seen = observe(ref, clock=clock)
    if seen.status.state.terminal:
        raise _ended(ref, seen.status)
    if seen.status.state is JobState.STOPPING:
        raise _stopping(ref)
    run = ref.open()
    while True:
        desired = _desired_in_force(ref, run)
        wanted = size_wanted(size, desired.workers, spec_in_force(run, desired).config, ref)
        if wanted == desired.workers:
            return SizeRequest(wanted, wanted, desired.revision)
        changed = replace(desired, revision=desired.revision + 1, workers=wanted, by=person(), at=timestamp(clock.now()))
        if run.create_desired(changed):
            return SizeRequest(wanted, desired.workers, changed.revision)


def size_wanted(size: int | str, now: WorkerBounds, config: JobConfig, ref: RunRef) -> WorkerBounds:
    """The bounds and the target that `size` means where `now` is in force. Raises ConfigError where the run cannot have it."""
    match = _SIZE.fullmatch(str(size).strip())
    if match is None:
        raise ConfigError(
            "the size is not clear",
            where=ref.uri,
            given=str(size) or "an empty text",
            expected="a number of workers such as 3, or bounds such as 2..6",
        )
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high:
        raise ConfigError(
            "the bounds do not fit together" if match[2] else "a run needs at least one worker",
            where=ref.uri,
            given=str(size),
            expected="1 <= A <= B in A..B, for example 2..6" if match[2] else f"{now.min} to {now.max} workers",
            next="" if match[2] else f"`launch stop {ref.name}` saves a checkpoint and ends it; `launch resume {ref.name}` goes on",
        )
    _refuse_above_shards(size, high, config, ref)
    if match[2] is None:
        _refuse_outside(high, now, ref)
        return replace(now, target=high)
    return WorkerBounds(min=low, max=high, target=high)


def follow_resize(ref: RunRef, request: SizeRequest, *, timeout_s: float = WAIT_S, clock: Clock | None = None) -> Iterator[Waited]:
    """Look again and again, until the run has the size that was asked for or says why not; after `timeout_s` seconds in any case."""
    clock = clock or SystemClock()
    observation = Observation(ref, clock)
    began = clock.monotonic()
    while True:
        seen = observation.look()
        why = why_not(seen.status, request, seen.snapshot.desired)
        if why is None and clock.monotonic() - began >= timeout_s:
            why = _not_yet(seen.status, timeout_s)
        yield Waited(seen.status, why is not None, why or "")
        if why is not None:
            return
        clock.sleep(POLL_S)


def why_not(status: RunStatus, request: SizeRequest, desired: Desired) -> str | None:
    """Why a run has not the size that was asked for and will not have it soon: "" when it has it, None while it may come."""
    target = request.workers.target
    if status.state.terminal:
        return f"it has ended: {status.state.value}"
    if status.state is JobState.STOPPING or desired.state == "stopped":
        return "it is asked to stop"
    if desired.workers != request.workers:
        return f"{desired.by} asked for {size_words(desired.workers)} meanwhile"
    if status.state is JobState.LOST:
        return f"{status.reason}; who takes it over fulfils the wish"
    if status.workers != request.workers:  # no controller has read the request yet
        return None
    if status.world_size == target and status.state is JobState.RUNNING:
        return ""
    if status.world_size < target and status.waiting_for:
        return f"it has {status.world_size} of {target} and waits for {status.waiting_for}; the wish stays"
    return None


def _not_yet(status: RunStatus, timeout_s: float) -> str:
    said = f": {status.reason}" if status.reason else ""
    return f"it has {status.world_size} of {status.workers.target} after {timeout_s:g} s, {status.state.value}{said}; the wish stays"


def _desired_in_force(ref: RunRef, run: RunStore) -> Desired:
    """Raises RunStateError where the run has ended or is asked to stop."""
    snapshot = read_snapshot(run)
    if snapshot.ended and snapshot.written is not None:
        raise _ended(ref, snapshot.written)
    if snapshot.desired.state == "stopped":
        raise _stopping(ref)
    return snapshot.desired


def _refuse_above_shards(size: int | str, wanted: int, config: JobConfig, ref: RunRef) -> None:
    if wanted <= config.shards:
        return
    batch, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    smaller = config.micro_batch_size_for(wanted)
    change = f"trainer.micro_batch_size={smaller}" if smaller else f"trainer.global_batch_size={wanted * micro}"
    raise ConfigError(
        f"{workers_words(wanted)} are more than the batch has shards",
        where=ref.uri,
        given=str(size),
        expected=f"at most {config.shards} workers (global_batch_size {batch} / micro_batch_size {micro}, constants of the run)",
        next=f"for a new run that begins with these weights: `launch train checkpoint.init_from={ref.name} {change} ...`",
    )


def _refuse_outside(wanted: int, now: WorkerBounds, ref: RunRef) -> None:
    if now.min <= wanted <= now.max:
        return
    if wanted > now.max:
        way = f"`launch resize {ref.name} {now.min}..{wanted}` raises the upper bound and asks for {wanted}"
    else:
        way = f"`launch resize {ref.name} {wanted}..{now.max}` lowers the bound and asks for {now.max}; then `launch resize {ref.name} {wanted}`"
    raise ConfigError(
        f"{workers_words(wanted)} would be outside the bounds in force",
        where=ref.uri,
        given=str(wanted),
        expected=f"a number within {now.min}..{now.max}",
        next=way,
    )


def _ended(ref: RunRef, status: RunStatus) -> RunStateError:
    done = status.state is JobState.SUCCEEDED
    return RunStateError(
        f"{ref.name} has ended: there is no group of workers to resize",
        where=ref.uri,
        given=f"state {status.state.value}",
        expected="a run that has not ended",
        next=f"`launch resume {ref.name} workers=A..B{' trainer.epochs=...' if done else ''}` goes on with other bounds",
    )


def _stopping(ref: RunRef) -> RunStateError:
    return RunStateError(
        f"{ref.name} is asked to stop",
        where=ref.uri,
        expected="a run that goes on",
        next=f"when it has stopped, `launch resume {ref.name} workers=A..B` goes on with other bounds",
    )
