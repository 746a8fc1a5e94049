"""The Trainer's observer: steps become records, parts of checkpoints become messages, orders become flags. Runs in the worker.

It is called on the main thread; `saved` and `save_failed` also on the one that uploads.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from launcher.core.clock import SystemClock, timestamp
from launcher.core.errors import ForeignTraceback
from launcher.core.types import Generation, Step
from launcher.runtime.protocol.messages import Beat, FirstStep, Saved, SaveFailed
from launcher.runtime.worker.activity import Activity
from launcher.runtime.worker.controller_connection import ControllerConnection
from launcher.runtime.worker.groups import Groups
from launcher.runtime.worker.membership import Membership
from launcher.runtime.worker.step_history import StepHistory

if TYPE_CHECKING:
    from launcher.checkpoint.manifest import CheckpointPart
    from launcher.training.step import StepFlags
    from launcher.training.trainer import StepRecord


class Reporter:
    def __init__(
        self,
        membership: Membership,
        connection: ControllerConnection,
        groups: Groups,
        history: StepHistory,
        activity: Activity,
        beat: Callable[[], Beat],
        *,
        checkpoint_every_steps: int | None,
    ) -> None:
        self._membership, self._connection, self._groups = membership, connection, groups
        self._history, self._activity, self._beat = history, activity, beat
        self._every = checkpoint_every_steps
        self._clock = SystemClock()
        self._generation = Generation(0)
        """Of the step before."""
        self._step = Step(0)

    def applied(self, record: StepRecord) -> None:
        generation, step = self._membership.generation, Step(record.step)
        first = generation != self._generation
        if first:
            self._generation = generation
            self._activity.first_step(self._groups.waited_s)
        else:
            self._activity.stepped(record.seconds, self._groups.waited_s)
        self._activity.last_step_at = time.monotonic()
        self._step = step
        row = self._history.add(
            step,
            generation,
            loss=record.loss,
            metrics=record.metrics,
            seconds=record.seconds,
            time=self._now() if self._history.wants_time(step) else "",
            grad_norm=record.grad_norm,
        )
        self._membership.applies(step)
        if first:
            self._connection.say(FirstStep(self._now(), self._beat()))
            self._groups.close_retired()
        if row is not None:
            self._membership.say_record(row)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self._membership.say_record(self._history.evaluated(Step(step), metrics))

    def saved(self, part: CheckpointPart, seconds: float) -> None:
        self._connection.say(Saved.of(part, round(seconds, 3)))

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        self._connection.say(SaveFailed(Step(step), Generation(generation), str(error)))

    def doing(self, what: str) -> None:
        self._activity.phase = what

    def flags(self) -> StepFlags:
        from launcher.training.step import StepFlags

        if self._every is not None and self._step % self._every == 0:
            self._connection.wait()  # at a checkpoint: train on only with somebody to save for
        return StepFlags(stop=self._membership.stop_wanted, switch=self._membership.switch_wanted)

    def _now(self) -> str:
        return timestamp(self._clock.now())


def user_traceback(error: BaseException, code: Path) -> str:
    """The traceback from where it enters the user's code, with paths as the user knows them; else from where it leaves ours."""
    if isinstance(error.__cause__, ForeignTraceback):
        return str(error.__cause__).replace(f"{code}{os.sep}", "").rstrip()
    entry = _first(error.__traceback__, lambda path: path.startswith(str(code)))
    if entry is None:
        ours = str(Path(__file__).resolve().parents[2])
        entry = _first(error.__traceback__, lambda path: not path.startswith(ours))
    text = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
    return text.replace(f"{code}{os.sep}", "").rstrip()


def missing_variable(error: BaseException) -> str:
    """What to do where the job's code read an environment variable that the job does not have; "" for every other error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not isinstance(error, KeyError) or not frames or frames[-1][0].f_code is not type(os.environ).__getitem__.__code__:
        return ""
    name = error.args[0]
    return f"\nThe job has no environment variable {name}: environment.{name}=VALUE gives it one, environment.{name}.secret=... a secret."


def _first(entry: TracebackType | None, wanted: Callable[[str], bool]) -> TracebackType | None:
    while entry is not None and not wanted(entry.tb_frame.f_code.co_filename):
        entry = entry.tb_next
    return entry
