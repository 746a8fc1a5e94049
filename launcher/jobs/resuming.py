"""Going on with an ended run: what may change, and the race between several that resume it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from launcher.config.parse import TARGET
from launcher.config.schema import JobConfig
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import CapacityError, ConfigError, LauncherError, RunStateError, StoreDamaged
from launcher.core.store import KeyMissing
from launcher.jobs.closing import close
from launcher.jobs.observe import Seen, backend_of, observe
from launcher.jobs.refs import RunRef, person
from launcher.jobs.snapshot import read_snapshot
from launcher.jobs.submitting import refuse_versions
from launcher.jobspec.environment import differences, with_named_variables
from launcher.jobspec.job import JobSpec
from launcher.jobspec.versions import installed_versions
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.encoding import encode
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus

FROZEN = (
    "model",
    "data",
    "task",
    "optimizer.target",
    "seed",
    "trainer.global_batch_size",
    "trainer.micro_batch_size",
    "trainer.precision",
)
"""What the steps done so far rest on."""
IDENTITY = ("name", "runs", "backend", "checkpoint.init_from", "code")
"""What was settled at the submit and would have no effect now."""


def resume(
    ref: RunRef, overrides: Sequence[str] = (), *, clock: Clock | None = None, tell: Callable[[str], object] = lambda sentence: None
) -> RunRef:
    """Start an ended run again, with the code and the environment variables that it was submitted with, at its newest whole checkpoint.

    `tell` is called with a sentence for each variable that this command has with another value. `overrides` in Hydra's grammar change the
    configuration: its length, workers, checkpoints, tracking and the like.
    A LOST run is taken over. Raises RunStateError for a run that lives, that another resume was faster with, or that
    is done and not lengthened; ConfigError for a change of what the steps done so far rest on.
    """
    clock = clock or SystemClock()
    seen = observe(ref, clock=clock)
    run = ref.open()
    if not seen.status.state.terminal and seen.status.state is not JobState.LOST:
        raise _running(ref, seen.status)
    spec = spec_in_force(run, seen.snapshot.desired)
    submitted, config = spec.config, with_named_variables(_changed(spec.config, overrides), os.environ)
    refuse_change(submitted, config)
    if seen.status.state is JobState.SUCCEEDED:
        refuse_done(ref, seen.status, submitted, config)
    backend = backend_of(run)
    asked = config.workers != submitted.workers or _names_workers(overrides)
    needed = config.workers if asked else seen.snapshot.desired.workers
    placement = backend.place(replace(spec, config=_at_least(config, needed)))
    if not placement.fits:
        raise CapacityError("the job does not fit", where=placement.where, expected=placement.reason)
    refuse_versions(config)
    for sentence in differences(config, os.environ):
        tell(sentence)
    seen = _closed_if_lost(ref, run, seen, clock)
    versions = installed_versions()
    if config != submitted or versions != spec.versions:
        spec = _next_spec(run, replace(spec, config=config, versions=versions))
    wanted = Desired(
        revision=seen.snapshot.desired.revision + 1,
        state="running",
        spec=spec.number,
        workers=config.workers if asked else seen.snapshot.desired.workers,  # a resize may have changed them
        by=person(),
        at=timestamp(clock.now()),
        resumes=seen.snapshot.visible,
    )
    backend.announce(run)
    if not run.create_desired(wanted):
        raise _running(ref, observe(ref, clock=clock).status, "somebody else was faster")
    try:
        backend.launch(spec, run)
    except LauncherError as error:
        reason = f"it could not be started again: {error.what}. `launch resume {ref.name}` tries again"
        close(ref, run, read_snapshot(run), state=JobState.FAILED, reason=reason, clock=clock)
        raise
    return ref


def refuse_change(before: JobConfig, after: JobConfig) -> None:
    """Raises ConfigError naming the first key that a resume may not change."""
    for key in FROZEN:
        if _value(before, key) != _value(after, key):
            raise ConfigError(
                f"a resume cannot change {_written(key)}: the steps done so far rest on it",
                where=_written(key),
                given=_shown(_value(after, key)),
                expected=_shown(_value(before, key)),
                next=f"for a new run that begins with these weights: `launch train checkpoint.init_from={before.name} ...`",
            )
    for key in IDENTITY:
        if _value(before, key) != _value(after, key):
            raise ConfigError(
                f"a resume cannot change {key}: it was settled when the run was submitted",
                where=key,
                given=_shown(_value(after, key)),
                expected=_shown(_value(before, key)),
            )


def refuse_done(ref: RunRef, status: RunStatus, before: JobConfig, after: JobConfig) -> None:
    """Raises RunStateError unless `after` asks for more than the run has done."""
    if _longer(status, before, after):
        return
    epochs = before.trainer.epochs
    example = f"trainer.epochs={2 * epochs:g}" if epochs is not None else f"trainer.steps={2 * (before.trainer.steps or 1)}"
    raise RunStateError(
        f"{ref.name} is done: all its {status.step} steps",
        where=ref.uri,
        expected="a longer run" if before == after else "a configuration that asks for more than it has done",
        next=f"launch resume {ref.name} {example}",
    )


def _longer(status: RunStatus, before: JobConfig, after: JobConfig) -> bool:
    old, new = before.trainer, after.trainer
    if new.steps is not None:
        return new.steps > status.step
    if new.epochs is None:
        return False
    return new.epochs > (old.epochs if old.epochs is not None else status.epoch)


def _changed(config: JobConfig, overrides: Sequence[str]) -> JobConfig:
    if not overrides:
        return config
    from launcher.config.load import apply_overrides

    return apply_overrides(config, overrides)


def _names_workers(overrides: Sequence[str]) -> bool:
    from launcher.config.overrides import read_word

    return any(word.key.partition(".")[0] == "workers" for word in map(read_word, overrides) if word is not None)


def _at_least(config: JobConfig, bounds: WorkerBounds) -> JobConfig:
    """The configuration with the lower bound that a resize left, which is what has to fit now; all else stays as the spec has it."""
    least = min(bounds.min, config.workers.max)
    return replace(config, workers=replace(config.workers, min=least, target=max(least, config.workers.target)))


def spec_in_force(run: RunStore, desired: Desired) -> JobSpec:
    """The spec that the desired state names. Raises StoreDamaged when it is missing."""
    document = run.spec(desired.spec)
    if document is None:
        raise StoreDamaged(f"the record of this run is not whole: spec-{desired.spec}.json is missing", where=run.uri)
    return JobSpec.from_json(document)


def _next_spec(run: RunStore, spec: JobSpec) -> JobSpec:
    """Write the spec under the next free number; one with the same content, left by somebody who was slower, will do."""
    while True:
        spec = replace(spec, number=spec.number + 1)
        key, content = run.key(f"spec-{spec.number}.json"), encode(spec.to_json())
        if run.store.create(key, content):
            return spec
        try:
            if run.store.get(key) == content:
                return spec
        except KeyMissing:
            continue


def _closed_if_lost(ref: RunRef, run: RunStore, seen: Seen, clock: Clock) -> Seen:
    """The closing term is what fences a controller that may still live where this machine cannot see it."""
    if seen.status.state is not JobState.LOST:
        return seen
    reason = f"no sign of life was seen from {person()}, which took it over"
    close(ref, run, seen.snapshot, state=JobState.FAILED, reason=reason, clock=clock)
    seen = observe(ref, clock=clock)
    if not seen.status.state.terminal:
        raise _running(ref, seen.status)
    return seen


def _running(ref: RunRef, status: RunStatus, how: str = "") -> RunStateError:
    return RunStateError(
        f"{ref.name} is running already" + (f": {how}" if how else ""),
        where=ref.uri,
        given=f"state {status.state.value}",
        expected="a run that has ended",
        next=f"`launch status {ref.name}` shows it, `launch stop {ref.name}` ends it",
    )


def _value(config: JobConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _written(key: str) -> str:
    """The key as a person writes it."""
    return key.replace(".target", f".{TARGET}")


def _shown(value: object) -> str:
    return str(getattr(value, "target", value))
