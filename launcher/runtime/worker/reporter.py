"""What a Trainer tells and asks in a worker: steps become records, parts of checkpoints become messages."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from launcher.core.clock import SystemClock, timestamp
from launcher.core.types import JsonObject
from launcher.runtime.worker.step_history import StepHistory

if TYPE_CHECKING:
    from launcher.checkpoint.manifest import CheckpointPart
    from launcher.training.step import StepFlags
    from launcher.training.trainer import StepRecord

SMOOTHING = 0.2
"""Weight of the newest step in the mean of a worker's own computing time."""


class Desk(Protocol):
    """The worker, as its reporter sees it."""

    generation: int
    records: StepHistory

    def say(self, message: JsonObject, *, keep: bool = False) -> None:
        """`keep`: also to the next controller, until one says that it is durable."""
        ...

    def say_record(self, message: JsonObject) -> None:
        """To be said by one rank alone."""
        ...

    def applied(self, step: int, *, first: bool) -> None: ...

    def doing(self, what: str) -> None: ...

    def switch_wanted(self) -> bool: ...

    def stop_wanted(self) -> bool: ...

    def wait_for_controller(self) -> None:
        """At a checkpoint's boundary: go on only with somebody to save for."""
        ...

    def waited_s(self) -> float:
        """Seconds that the present generation's collective has spent waiting for others."""
        ...


class Reporter:
    """An observer of the Trainer; called on the main thread, `saved` also on the one that uploads."""

    def __init__(self, desk: Desk, checkpoint_every_steps: int | None) -> None:
        self._desk = desk
        self._every = checkpoint_every_steps
        self._clock = SystemClock()
        self._generation = 0
        self._waited_s = 0.0
        self._step = 0
        self.busy_s: float | None = None
        """Seconds of a step in which this rank computes and does not wait for others, smoothed."""
        self.step_s: float | None = None
        """Seconds of a whole step, smoothed."""
        self.last_step_at: float | None = None
        """On the monotonic clock."""

    def applied(self, record: StepRecord) -> None:
        desk = self._desk
        first = desk.generation != self._generation
        if first:
            self._generation, self._waited_s, self.busy_s, self.step_s = desk.generation, desk.waited_s(), None, None
        else:
            self._measure(record.seconds)
        self.last_step_at = time.monotonic()
        self._step = record.step
        moment = timestamp(self._clock.now()) if desk.records.wants_time(record.step) else ""
        row = desk.records.add(
            record.step,
            desk.generation,
            loss=record.loss,
            metrics=record.metrics,
            seconds=record.seconds,
            time=moment,
            grad_norm=record.grad_norm,
        )
        desk.applied(record.step, first=first)
        if row is not None:
            desk.say_record(row)

    def _measure(self, seconds: float) -> None:
        waited = self._desk.waited_s()
        busy, self._waited_s = max(0.0, seconds - (waited - self._waited_s)), waited
        self.busy_s = busy if self.busy_s is None else self.busy_s + SMOOTHING * (busy - self.busy_s)
        self.step_s = seconds if self.step_s is None else self.step_s + SMOOTHING * (seconds - self.step_s)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self._desk.say_record(self._desk.records.evaluated(step, metrics))

    def saved(self, part: CheckpointPart, seconds: float) -> None:
        facts: JsonObject = {"step": part.step, "generation": part.generation, "seconds": round(seconds, 3), "part": part.to_json()}
        self._desk.say({"kind": "saved", **facts}, keep=True)

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        self._desk.say({"kind": "save_failed", "step": step, "generation": generation, "detail": str(error)}, keep=True)

    def doing(self, what: str) -> None:
        self._desk.doing(what)

    def flags(self) -> StepFlags:
        from launcher.training.step import StepFlags

        if self._every is not None and self._step % self._every == 0:
            self._desk.wait_for_controller()
        return StepFlags(stop=self._desk.stop_wanted(), switch=self._desk.switch_wanted())


def user_traceback(error: BaseException, code: Path) -> str:
    """The traceback from where it enters the user's code, with paths as the user knows them; else from where it leaves ours."""
    entry = _first(error.__traceback__, lambda path: path.startswith(str(code)))
    if entry is None:
        ours = str(Path(__file__).resolve().parents[2])
        entry = _first(error.__traceback__, lambda path: not path.startswith(ours))
    text = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
    return text.replace(f"{code}{os.sep}", "").rstrip()


def _first(entry: TracebackType | None, wanted: Callable[[str], bool]) -> TracebackType | None:
    while entry is not None and not wanted(entry.tb_frame.f_code.co_filename):
        entry = entry.tb_next
    return entry
