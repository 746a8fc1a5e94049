"""What a term's training amounts to: rows of committed steps to ledger, metrics and tracker; nothing that is only applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from launcher.core.clock import Clock, timestamp
from launcher.core.store import is_local, local_path
from launcher.core.types import JsonObject, Step, Term
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from launcher.runtime.records.event_log import EventLog
from launcher.runtime.records.inheritance import Inheritance
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.store_writer import StoreWriter
from launcher.tracking.sinks import Tracker, open_tracker


class RunRecorder:
    def __init__(self, run: RunStore, spec: JobSpec, writer: StoreWriter, clock: Clock, state_folder: Path) -> None:
        self._run, self._spec, self._writer, self._clock = run, spec, writer, clock
        self._state_folder = state_folder
        self._tracker: Tracker | None = None
        self.recorder: EventLog
        self.progress = Progress(start=Step(0), batch=0, seconds=0.0, step=0)

    def open(self, term: Term, left: Inheritance, start: Step) -> None:
        """Begin a term's books, after the step that earlier terms have recorded."""
        self.recorder = EventLog(self._run, term, self._writer, self._clock)
        self.progress = Progress.after(left, start, self._spec)

    def event(self, kind: str, *, generation: int, **facts: object) -> None:
        self.recorder.event(kind, step=self.progress.step, generation=generation, **facts)

    def commit(self, step: Step) -> None:
        """Every member holds this step: pass on the rows through it."""
        for done in self.progress.committed(step):
            self.recorder.steps(done.row, first=done.first, generation=done.generation, batch=self._spec.config.trainer.global_batch_size)
            self._track(done.last, done.row)

    def evaluated(self, message: Any) -> bool:
        """False when this evaluation is known already."""
        if not self.progress.evaluated(message["step"], message["metrics"]):
            return False
        figures = {f"eval_{name}": value for name, value in message["metrics"].items()}
        row: JsonObject = {"step": message["step"], "time": timestamp(self._clock.now()), **figures}
        self.recorder.row(row)
        self._track(message["step"], row)
        return True

    def flush(self, *, ledger: bool, durable: Callable[[int], None] | None = None) -> None:
        self.recorder.flush(ledger=ledger, durable=durable)

    # the tracker

    def begin_tracking(self) -> None:
        """After the first step, so that it costs the start nothing."""
        if self._tracker is None:
            here = is_local(self._run.uri)
            folder = local_path(self._run.uri) / "tracking" if here else self._state_folder / "tracking" / self._run.run_id
            self._tracker = open_tracker(self._spec, folder)
            self._tracker.start()

    def reports(self) -> list[JsonObject]:
        """What the tracker has to say of itself."""
        return [to_builtins(report) for report in self._tracker.reports()] if self._tracker is not None else []

    def finish(self, exit_code: int) -> None:
        if self._tracker is not None:
            self._tracker.finish(exit_code)

    def _track(self, step: int, row: JsonObject) -> None:
        if self._tracker is not None:
            self._tracker.metrics(step, {key: value for key, value in row.items() if key not in ("step", "time")})
