"""How far the run has come: rows of steps wait here until every member holds them; then they count."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from launcher.core.types import Generation, JsonObject, Step
from launcher.jobspec.job import JobSpec
from launcher.runtime.records.inheritance import Inheritance
from launcher.tracking.metrics import goodput

RECENT_ROWS = 5


@dataclass(frozen=True)
class StepRow:
    """Metrics over the steps first..last, which one generation computed."""

    first: int
    last: int
    generation: Generation
    row: JsonObject


@dataclass
class Progress:
    start: Step
    """Steps up to this one were recorded by earlier terms."""
    batch: int
    seconds: float
    """Spent in committed steps, of all terms."""
    step: int
    """Committed; what the ledger, the metrics and the status show."""
    train_loss: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    _waiting: deque[StepRow] = field(default_factory=deque)
    _taken: int = 0
    _passed: int = 0
    _evaluated: int = -1
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_ROWS))

    @classmethod
    def after(cls, left: Inheritance, start: Step, spec: JobSpec) -> Progress:
        before = left.status
        metrics = dict(before.metrics) if before else {}
        loss = before.train_loss if before else None
        batch = spec.config.trainer.global_batch_size
        return cls(
            start=start, batch=batch, seconds=left.train_seconds, step=start, train_loss=loss, metrics=metrics, _taken=start, _passed=start
        )

    def take(self, message: Any) -> None:
        """A row of applied steps, right after the one before; what was taken already is not taken twice, and where one is missing none is."""
        row = StepRow(message["first"], int(message["row"]["step"]), message["generation"], message["row"])
        if row.last > self._taken and row.first <= self._taken + 1:
            self._waiting.append(replace(row, first=self._taken + 1))
            self._taken = row.last

    def restart(self, step: int) -> None:
        """A new generation goes on from `step`: what an earlier one applied beyond it, and nobody holds any more, was never committed."""
        while self._waiting and self._waiting[-1].last > step:
            self._waiting.pop()
        self._taken = self._waiting[-1].last if self._waiting else self._passed

    @property
    def passed(self) -> int:
        """The rows through this step were passed on."""
        return self._passed

    def lacks_rows(self, step: int, most: int) -> bool:
        """Whether committed steps wait for their rows longer than `most` steps: they have to be asked for."""
        return step - self._taken > most

    def committed(self, step: int) -> list[StepRow]:
        """The rows that are committed now that every member holds `step`."""
        done = []
        while self._waiting and self._waiting[0].last <= step:
            row = self._waiting.popleft()
            self._passed = row.last
            self._count(row)
            done.append(row)
        self.step = max(self.step, step)
        return done

    def evaluated(self, step: int, metrics: dict[str, float | None]) -> bool:
        """False when this evaluation is known already."""
        if step <= self._evaluated:
            return False
        self._evaluated = step
        self.metrics = dict(metrics)
        return True

    def _count(self, taken: StepRow) -> None:
        row = taken.row
        steps, seconds = taken.last - taken.first + 1, row.get("seconds")
        if isinstance(seconds, float):
            self.seconds += seconds
            self._recent.append((steps, seconds))
        loss = row.get("loss")
        self.train_loss = loss if isinstance(loss, float) else self.train_loss

    @property
    def samples_per_s(self) -> float | None:
        """Over the newest rows."""
        steps, seconds = sum(item[0] for item in self._recent), sum(item[1] for item in self._recent)
        return round(steps * self.batch / seconds, 1) if seconds > 0 else None

    def goodput(self, submitted_at: str, now: datetime) -> float | None:
        share = goodput(self.seconds, (now - datetime.fromisoformat(submitted_at)).total_seconds())
        return round(share, 4) if share is not None else None
