"""What every rank keeps of the steps done until the run store has it: rows of metrics with their steps, and evaluations.

All ranks that hold the state keep the same, and it travels with the state, so that whoever is left can say it again: the
ledger has each step once whatever dies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from launcher.core.types import JsonObject
from launcher.record.rows import encode_row
from launcher.tracking.metrics import MetricWindow


class StepHistory:
    """Rows end where a window of metrics does, at a checkpoint, and where a generation ends."""

    def __init__(self, log_every_steps: int, global_batch_size: int, checkpoint_every_steps: int | None) -> None:
        self._window = MetricWindow(log_every_steps, global_batch_size)
        self._log_every = log_every_steps
        self._save_every = checkpoint_every_steps
        self._first: int | None = None
        self._generation = 0
        self._rows: list[JsonObject] = []
        self._evaluations: list[JsonObject] = []
        self._durable = 0

    @property
    def rows(self) -> list[JsonObject]:
        """{"kind": "row", "first", "generation", "row"}, oldest first; `row` as MetricWindow gives it. From any thread."""
        return [row for row in tuple(self._rows) if _step(row["row"]) > self._durable]

    @property
    def evaluations(self) -> list[JsonObject]:
        return [each for each in tuple(self._evaluations) if _step(each) > self._durable]

    def wants_time(self, step: int) -> bool:
        """Whether a row may end with this step, so that its moment matters."""
        return step % self._log_every == 0 or self._at_checkpoint(step)

    def add(
        self,
        step: int,
        generation: int,
        *,
        loss: float,
        metrics: Mapping[str, float],
        seconds: float,
        time: str,
        grad_norm: float | None,
    ) -> JsonObject | None:
        """Take a step that was applied; the row that it completes, or None."""
        if self._first is None:
            self._first, self._generation = step, generation
        row = self._window.add(step, loss=loss, metrics=metrics, seconds=seconds, time=time, grad_norm=grad_norm)
        if row is None and self._at_checkpoint(step):
            row = self._window.flush()
        return self._keep(encode_row(row) if row is not None else None)

    def cut(self, time: str) -> JsonObject | None:
        """The row of an unfinished window, which ends here."""
        row = self._window.flush()
        return self._keep(None if row is None else {**encode_row(row), "time": row.time or time})

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> JsonObject:
        """JSON has no word for what is not a number: null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        message: JsonObject = {"kind": "evaluated", "step": step, "metrics": {**finite}}
        self._evaluations = [*self.evaluations, message]
        return message

    def forget(self, step: int) -> None:
        """Everything through `step` is durable. From any thread: what is kept is changed by the one that trains alone."""
        self._durable = max(self._durable, step)

    def to_json(self) -> JsonObject:
        return {
            "window": self._window.to_json(),
            "first": self._first,
            "generation": self._generation,
            "rows": [*self.rows],
            "evaluations": [*self.evaluations],
            "durable": self._durable,
        }

    def take(self, document: Any) -> None:
        """Keep what another rank kept."""
        self._window.take(document["window"])
        self._first, self._generation = document["first"], document["generation"]
        self._rows, self._evaluations = list(document["rows"]), list(document["evaluations"])
        self._durable = max(self._durable, document["durable"])

    def _keep(self, row: JsonObject | None) -> JsonObject | None:
        if row is None:
            return None
        message: JsonObject = {"kind": "row", "first": self._first, "generation": self._generation, "row": row}
        self._first = None
        self._rows = [*self.rows, message]
        return message

    def _at_checkpoint(self, step: int) -> bool:
        return self._save_every is not None and step % self._save_every == 0


def _step(row: Any) -> int:
    return int(row["step"])
