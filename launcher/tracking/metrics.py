"""From the records of single steps to rows of metrics; throughput and goodput. Pure: time is handed in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.core.types import Json, JsonObject

RESERVED = ("step", "time", "seconds", "loss", "samples_per_s", "grad_norm")
"""Keys of a row that are ours; a task's metric of the same name does not replace them."""


def throughput(samples: float, seconds: float) -> float | None:
    """Samples a second; None where no time has passed."""
    return samples / seconds if seconds > 0 else None


def goodput(committed_s: float, wall_s: float) -> float | None:
    """Seconds spent in committed steps / wall seconds since submit, between 0 and 1; None where no time has passed.

    Start-up, evaluation, saving, waiting, and steps that were rolled back or computed again are what is missing to 1.
    """
    return min(1.0, max(0.0, committed_s / wall_s)) if wall_s > 0 else None


def trained_seconds(rows: Iterable[JsonObject]) -> float:
    """Seconds in the steps that these rows stand for: where a later term goes on counting."""
    return sum(seconds for row in rows if isinstance(seconds := row.get("seconds"), (int, float)))


class MetricWindow:
    """Means over windows of `every_steps` steps, as rows.

    A row: {"step": last step in it, "time": when that step was done, "seconds": spent in its steps, "loss", "samples_per_s",
    "grad_norm" where gradients are clipped, and the task's metrics by their names}. Means are over the steps in the window that
    have the value; a value that is not finite is null. Windows end at multiples of `every_steps`, so that rows fall on the same
    steps however often a run was resumed.
    """

    def __init__(self, every_steps: int, global_batch_size: int) -> None:
        self._every_steps = every_steps
        self._global_batch_size = global_batch_size
        self._records: list[tuple[int, str, float, dict[str, float]]] = []

    def add(
        self, step: int, *, loss: float, metrics: Mapping[str, float], seconds: float, time: str, grad_norm: float | None = None
    ) -> JsonObject | None:
        """Take one committed step; the row that it completes, or None.

        `step` is the state after it, `time` its own moment (not that of its arrival here), in ISO 8601.
        A step at or before one already taken replaces that one and all that followed.
        """
        values = {name: value for name, value in metrics.items() if name not in RESERVED}
        values["loss"] = loss
        if grad_norm is not None:
            values["grad_norm"] = grad_norm
        self._records = [record for record in self._records if record[0] < step]
        self._records.append((step, time, seconds, values))
        return self.flush() if step % self._every_steps == 0 else None

    def flush(self) -> JsonObject | None:
        """The row of an unfinished window, at the end of training; None when it is empty."""
        if not self._records:
            return None
        records, self._records = self._records, []
        seconds = math.fsum(record[2] for record in records)
        row: JsonObject = {
            "step": records[-1][0],
            "time": records[-1][1],
            "seconds": seconds,
            "samples_per_s": throughput(len(records) * self._global_batch_size, seconds),
        }
        for name in dict.fromkeys(name for record in records for name in record[3]):
            row[name] = _mean([record[3][name] for record in records if name in record[3]])
        return row

    def to_json(self) -> Json:
        """The unfinished window, for another worker to go on with."""
        return [[step, time, seconds, {**values}] for step, time, seconds, values in self._records]

    def take(self, document: Any) -> None:
        self._records = [(step, time, seconds, dict(values)) for step, time, seconds, values in document]


def _mean(values: list[float]) -> float | None:
    if not all(math.isfinite(value) for value in values):
        return None
    return math.fsum(values) / len(values)
