"""What every rank keeps of the steps done until the run store has it: rows of metrics, and evaluations. Runs in the worker.

All ranks that hold the state keep the same, and it is sent along with the state, so that whoever is left can say it again: the ledger
has each step once, whatever dies. Steps come on the main thread, everything else on any.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import msgspec

from launcher.core.types import Generation, JsonObject, Step
from launcher.record.rows import MetricsRow
from launcher.runtime.protocol.messages import Evaluated, Row
from launcher.tracking.metrics import MetricWindow


class HistoryState(msgspec.Struct, frozen=True):
    """All that is kept, for another rank to go on with."""

    window: object
    """As MetricWindow gives it."""
    first: Step | None
    generation: Generation
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluated, ...]
    durable: Step


class StepHistory:
    """Rows end where a window of metrics does, at a checkpoint, and where a generation ends."""

    def __init__(self, log_every_steps: int, global_batch_size: int, checkpoint_every_steps: int | None) -> None:
        self._window = MetricWindow(log_every_steps, global_batch_size)
        self._log_every = log_every_steps
        self._save_every = checkpoint_every_steps
        self._first: Step | None = None
        self._generation = Generation(0)
        self._lock = threading.Lock()
        """Guards what follows."""
        self._rows: tuple[Row, ...] = ()
        self._evaluations: tuple[Evaluated, ...] = ()
        self._durable = Step(0)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Oldest first."""
        return self._rows

    @property
    def evaluations(self) -> tuple[Evaluated, ...]:
        return self._evaluations

    def wants_time(self, step: Step) -> bool:
        """Whether a row may end with this step, so that its moment matters."""
        return step % self._log_every == 0 or self._at_checkpoint(step)

    def add(
        self,
        step: Step,
        generation: Generation,
        *,
        loss: float,
        metrics: Mapping[str, float],
        seconds: float,
        time: str,
        grad_norm: float | None,
    ) -> Row | None:
        """Take a step that was applied; the row that it completes, or None."""
        if self._first is None:
            self._first, self._generation = step, generation
        row = self._window.add(step, loss=loss, metrics=metrics, seconds=seconds, time=time, grad_norm=grad_norm)
        if row is None and self._at_checkpoint(step):
            row = self._window.flush()
        return self._keep(row) if row is not None else None

    def cut(self, time: str) -> Row | None:
        """The row of an unfinished window, which ends here."""
        row = self._window.flush()
        return self._keep(msgspec.structs.replace(row, time=row.time or time)) if row is not None else None

    def evaluated(self, step: Step, metrics: Mapping[str, float]) -> Evaluated:
        """JSON has no word for what is not a number: null."""
        message = Evaluated(step, {name: value if math.isfinite(value) else None for name, value in metrics.items()})
        with self._lock:
            self._evaluations = (*self._evaluations, message)
            self._drop_durable()
        return message

    def forget(self, step: Step) -> None:
        """Everything through `step` is durable."""
        with self._lock:
            self._durable = max(self._durable, step)
            self._drop_durable()

    def to_json(self) -> JsonObject:
        with self._lock:
            state = HistoryState(self._window.to_json(), self._first, self._generation, self._rows, self._evaluations, self._durable)
        document: JsonObject = msgspec.to_builtins(state)
        return document

    def take(self, document: JsonObject) -> None:
        """Keep what another rank kept, as its `to_json` gave it. Raises msgspec.ValidationError where it is none."""
        state = msgspec.convert(document, HistoryState)
        self._window.take(state.window)
        self._first, self._generation = state.first, state.generation
        with self._lock:
            self._rows, self._evaluations = state.rows, state.evaluations
            self._durable = max(self._durable, state.durable)
            self._drop_durable()

    def _keep(self, row: MetricsRow) -> Row:
        assert self._first is not None, "a row has a first step"
        message = Row(self._first, self._generation, row)
        self._first = None
        with self._lock:
            self._rows = (*self._rows, message)
            self._drop_durable()
        return message

    def _drop_durable(self) -> None:
        """With the lock held. What is added may be durable already: the run store has it from a rank that was faster."""
        self._rows = tuple(row for row in self._rows if row.row.step > self._durable)
        self._evaluations = tuple(each for each in self._evaluations if each.step > self._durable)

    def _at_checkpoint(self, step: Step) -> bool:
        return self._save_every is not None and step % self._save_every == 0
