"""What a term's training amounts to: committed steps to ledger, metrics and tracker; nothing that is only applied. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.core.clock import Clock, timestamp
from launcher.core.store import is_local, local_path
from launcher.core.types import Generation, Step, Term
from launcher.jobspec.job import JobSpec
from launcher.record.events import Event, Tracking
from launcher.record.rows import EvaluationRow, LogLine, encode_row
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.messages import Evaluated
from launcher.runtime.records.event_log import EventLog
from launcher.runtime.records.inheritance import Inheritance
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.store_writer import StoreWriter
from launcher.tracking.sinks import Tracker, open_tracker


class RunRecorder:
    def __init__(
        self,
        run: RunStore,
        spec: JobSpec,
        writer: StoreWriter,
        clock: Clock,
        term: Term,
        left: Inheritance,
        *,
        state_folder: Path,
        durable: Callable[[Step, Term], None],
    ) -> None:
        """`durable` is told, on the writer's thread, through which step the store has ledger and metrics, and of which term."""
        self._run, self._spec, self._writer, self._clock = run, spec, writer, clock
        self._state_folder, self._durable = state_folder, durable
        self._tracker: Tracker | None = None
        self._log = self._new_log(term)
        self.progress = Progress.after(left, left.recorded, spec)
        self.generation = Generation(max(left.generation, left.status.generation if left.status is not None else 0))
        """The newest that was formed."""

    def begin_term(self, term: Term, left: Inheritance, start: Step) -> None:
        """Begin a term's records, after the step that earlier terms have recorded."""
        self._log = self._new_log(term)
        self.progress = Progress.after(left, start, self._spec)

    def _new_log(self, term: Term) -> EventLog:
        return EventLog(self._run, term, self._writer, self._clock, batch=self._spec.config.trainer.global_batch_size)

    def event(self, event: Event) -> None:
        self._log.event(event, step=self.progress.step, generation=self.generation)

    def line(self, line: LogLine) -> None:
        self._log.line(line)

    def commit(self, step: Step) -> None:
        """Every member holds this step: pass on the rows through it."""
        for done in self.progress.committed(step):
            self._log.steps(done.row, first=done.first, generation=done.generation)
            row = encode_row(done.row)
            self._track(done.row.step, {name: value for name, value in row.items() if name not in ("step", "time")})

    def evaluated(self, evaluated: Evaluated) -> bool:
        """False when this evaluation is known already."""
        if not self.progress.evaluated(evaluated.step, evaluated.metrics):
            return False
        figures = {f"eval_{name}": value for name, value in evaluated.metrics.items()}
        self._log.evaluation(EvaluationRow(step=evaluated.step, time=timestamp(self._clock.now()), values=figures))
        self._track(evaluated.step, figures)
        return True

    def flush(self, *, ledger: bool) -> None:
        """Hand what is pending to the writer; `ledger`: also steps and metrics."""
        term = self._log.term
        self._log.flush(ledger=ledger, durable=lambda step: self._durable(step, term))

    # the tracker

    def begin_tracking(self) -> None:
        """After the first step, so that it costs the start nothing."""
        if self._tracker is None:
            here = is_local(self._run.uri)
            folder = local_path(self._run.uri) / "tracking" if here else self._state_folder / "tracking" / self._run.run_id
            self._tracker = open_tracker(self._spec, folder)
            self._tracker.start()

    @property
    def tracking(self) -> bool:
        """Whether a step of this run was seen to be committed."""
        return self._tracker is not None

    def reports(self) -> list[Tracking]:
        """What the tracker has to say of itself."""
        return self._tracker.reports() if self._tracker is not None else []

    def finish(self, exit_code: int) -> None:
        """Let the tracker pass on what is left; its last words come until `finished`."""
        if self._tracker is not None:
            self._tracker.finish(exit_code)

    @property
    def finished(self) -> bool:
        return self._tracker is None or self._tracker.finished

    def _track(self, step: Step, figures: Mapping[str, object]) -> None:
        if self._tracker is not None:
            self._tracker.metrics(step, figures)
