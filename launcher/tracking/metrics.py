"""From the records of single steps to rows of metrics; throughput and goodput. Pure: time is handed in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import UNSET, Struct, convert, to_builtins

from launcher.core.types import Json, Step
from launcher.record.rows import RESERVED, MetricsRow


def throughput(samples: float, seconds: float) -> float | None:
    """Samples a second; None where no time has passed."""
    return samples / seconds if seconds > 0 else None


def goodput(committed_s: float, wall_s: float) -> float | None:
    """Seconds spent in committed steps / wall seconds since submit, between 0 and 1; None where no time has passed.

    Start-up, evaluation, saving, waiting, and steps that were rolled back or computed again are what is missing to 1.
    """
    return min(1.0, max(0.0, committed_s / wall_s)) if wall_s > 0 else None


class _Step(Struct, frozen=True, array_like=True):
    step: int
    time: str
    seconds: float
    values: dict[str, float]
    """The loss, the gradients' norm where there is one, and the task's metrics."""


class MetricWindow:
    """Means over windows of `every_steps` steps, as rows.

    Means are over the steps in the window that have the value; a value that is not finite is None. Windows end at multiples
    of `every_steps`, so that rows fall on the same steps however often a run was resumed.
    """

    def __init__(self, every_steps: int, global_batch_size: int) -> None:
        self._every_steps = every_steps
        self._global_batch_size = global_batch_size
        self._steps: list[_Step] = []

    def add(
        self, step: int, *, loss: float, metrics: Mapping[str, float], seconds: float, time: str, grad_norm: float | None = None
    ) -> MetricsRow | None:
        """Take one committed step; the row that it completes, or None.

        `step` is the state after it, `time` its own moment (not that of its arrival here), in ISO 8601.
        A step at or before one already taken replaces that one and all that followed.
        """
        values = {name: value for name, value in metrics.items() if name not in RESERVED}
        values["loss"] = loss
        if grad_norm is not None:
            values["grad_norm"] = grad_norm
        self._steps = [taken for taken in self._steps if taken.step < step]
        self._steps.append(_Step(step, time, seconds, values))
        return self.flush() if step % self._every_steps == 0 else None

    def flush(self) -> MetricsRow | None:
        """The row of an unfinished window, at the end of training; None when it is empty."""
        if not self._steps:
            return None
        steps, self._steps = self._steps, []
        seconds = math.fsum(each.seconds for each in steps)
        means = {
            name: _mean([each.values[name] for each in steps if name in each.values])
            for name in dict.fromkeys(name for each in steps for name in each.values)
        }
        return MetricsRow(
            step=Step(steps[-1].step),
            time=steps[-1].time,
            seconds=seconds,
            loss=means.pop("loss"),
            samples_per_s=throughput(len(steps) * self._global_batch_size, seconds),
            grad_norm=means.pop("grad_norm", UNSET),
            metrics=means,
        )

    def to_json(self) -> Json:
        """The unfinished window, for another worker to go on with."""
        document: Json = to_builtins(self._steps)
        return document

    def take(self, document: object) -> None:
        """Go on with the window that another worker's `to_json` gave. Raises msgspec.ValidationError where it is none."""
        self._steps = convert(document, list[_Step])


def _mean(values: list[float]) -> float | None:
    if not all(math.isfinite(value) for value in values):
        return None
    return math.fsum(values) / len(values)
