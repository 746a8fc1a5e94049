"""How far the run has come: rows of steps wait here until every member holds them; then they count. Runs in the controller process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from launcher.core.types import Step
from launcher.jobspec.job import JobSpec
from launcher.runtime.protocol.messages import Row
from launcher.runtime.records.inheritance import Inheritance
from launcher.tracking.metrics import goodput

RECENT_ROWS = 5


@dataclass
class Progress:
    start: Step
    """Steps up to this one were recorded by earlier terms."""
    batch: int
    seconds: float
    """Spent in committed steps, of all terms."""
    step: Step
    """Committed; what the ledger, the metrics and the status show."""
    train_loss: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    _waiting: deque[Row] = field(default_factory=deque)
    _taken: int = 0
    _passed: int = 0
    _evaluated: int = -1
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_ROWS))

    @classmethod
    def after(cls, left: Inheritance, start: Step, spec: JobSpec) -> Progress:
        before = left.status
        return cls(
            start=start,
            batch=spec.config.trainer.global_batch_size,
            seconds=left.train_seconds,
            step=start,
            train_loss=before.train_loss if before else None,
            metrics=dict(before.metrics) if before else {},
            _taken=start,
            _passed=start,
        )

    def take(self, row: Row) -> None:
        """A row of applied steps, right after the one before; what was taken already is not taken twice, and where one is missing none is."""
        last = row.row.step
        if last > self._taken and row.first <= self._taken + 1:
            self._waiting.append(msgspec.structs.replace(row, first=Step(self._taken + 1)))
            self._taken = last

    def restart(self, step: Step) -> None:
        """A new generation goes on from `step`: what an earlier one applied beyond it, and nobody holds any more, was never committed."""
        while self._waiting and self._waiting[-1].row.step > step:
            self._waiting.pop()
        self._taken = self._waiting[-1].row.step if self._waiting else self._passed

    @property
    def passed(self) -> int:
        """The rows through this step were passed on."""
        return self._passed

    def lacks_rows(self, step: int, most: int) -> bool:
        """Whether committed steps wait for their rows longer than `most` steps: they have to be asked for."""
        return step - self._taken > most

    def committed(self, step: Step) -> list[Row]:
        """The rows that are committed now that every member holds `step`."""
        done = []
        while self._waiting and self._waiting[0].row.step <= step:
            row = self._waiting.popleft()
            self._passed = row.row.step
            self._count(row)
            done.append(row)
        self.step = max(self.step, step)
        return done

    def evaluated(self, step: Step, metrics: Mapping[str, float | None]) -> bool:
        """False when this evaluation is known already."""
        if step <= self._evaluated:
            return False
        self._evaluated = step
        self.metrics = dict(metrics)
        return True

    def _count(self, row: Row) -> None:
        self.seconds += row.row.seconds
        self._recent.append((row.row.step - row.first + 1, row.row.seconds))
        loss = row.row.loss
        self.train_loss = loss if loss is not None and math.isfinite(loss) else self.train_loss

    @property
    def samples_per_s(self) -> float | None:
        """Over the newest rows."""
        steps, seconds = sum(item[0] for item in self._recent), sum(item[1] for item in self._recent)
        return round(steps * self.batch / seconds, 1) if seconds > 0 else None

    def goodput(self, submitted_at: str, now: datetime) -> float | None:
        """Time in committed steps / time since the submit (ISO 8601), between 0 and 1."""
        share = goodput(self.seconds, (now - datetime.fromisoformat(submitted_at)).total_seconds())
        return round(share, 4) if share is not None else None
