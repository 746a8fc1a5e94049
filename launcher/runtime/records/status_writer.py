"""The status document of a run, as its controller writes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import convert

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import Clock, timestamp
from launcher.core.types import JsonObject, Step, Term
from launcher.jobspec.job import JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.members import LastChange, Member
from launcher.record.run_store import STATUS_INTERVAL_S, RunStore
from launcher.record.status import CheckpointRef, JobState, RunStatus
from launcher.runtime.protocol.coordinator import End
from launcher.runtime.records.inheritance import Inheritance
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.ray_metrics import RayMetrics
from launcher.runtime.records.store_writer import StoreWriter


@dataclass
class StatusWriter:
    """What is shown beside progress and membership; `due` is when it has to be written again, in monotonic seconds."""

    run: RunStore
    clock: Clock
    spec: JobSpec
    state: JobState = JobState.STARTING
    reason: str = "starting Ray"
    device: str = ""
    dashboard: str = ""
    total_steps: int | None = None
    data_size: int = 0
    checkpoint: CheckpointInfo | None = None
    steps_lost: int = 0
    changes: int = 0
    last_change: LastChange | None = None
    waiting_for: str = ""
    draining: tuple[str, ...] = ()
    stragglers: tuple[str, ...] = ()
    due: float = 0.0
    _sequence: int = field(default=0)

    def inherit(self, left: Inheritance) -> None:
        """Go on from what earlier terms showed."""
        before = left.status
        if before is not None:
            self.total_steps, self.changes, self.last_change = before.total_steps, before.changes, before.last_change
            self.steps_lost = before.steps_lost

    def say(self, state: JobState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason, self.due = state, reason, 0.0

    def told(self, change: JsonObject) -> None:
        """A change of the group is complete; its facts are those of the event `resized`."""
        self.last_change = convert({**change, "at": timestamp(self.clock.now())}, LastChange)
        self.due = 0.0

    def end(self, end: End) -> None:
        self.state, self.reason = end.state, end.reason
        self.waiting_for, self.draining, self.stragglers = "", (), ()

    def write(
        self,
        writer: StoreWriter,
        term: Term,
        *,
        left: Inheritance,
        progress: Progress,
        bounds: WorkerBounds,
        generation: int,
        members: list[JsonObject],
        end: End | None,
    ) -> None:
        config, before = self.spec.config, left.status
        moment = timestamp(self.clock.now())
        batch = config.trainer.global_batch_size
        self._sequence += 1
        self.due = self.clock.monotonic() + STATUS_INTERVAL_S
        status = RunStatus(
            run_id=self.run.run_id,
            name=self.spec.name,
            state=self.state,
            reason=self.reason,
            step=progress.step,
            total_steps=self.total_steps,
            epoch=round(progress.step * batch / self.data_size, 3) if self.data_size else 0.0,
            term=term,
            generation=generation,
            world_size=len(members),
            workers=bounds,
            members=convert(members, tuple[Member, ...]),
            changes=self.changes,
            last_change=self.last_change,
            waiting_for=self.waiting_for,
            draining=self.draining,
            stragglers=self.stragglers,
            steps_lost=self.steps_lost,
            samples_repeated=self.steps_lost * batch,
            train_loss=progress.train_loss,
            metrics=progress.metrics,
            samples_per_s=progress.samples_per_s,
            goodput=progress.goodput(self.spec.submitted_at, self.clock.now()),
            checkpoint=self._checkpoint_ref(),
            device=self.device,
            dashboard=self.dashboard,
            submitted_at=self.spec.submitted_at,
            started_at=before.started_at if before and before.started_at else self.spec.submitted_at,
            ended_at=moment if self.state.terminal else None,
            updated_at=moment,
            sequence=self._sequence,
            exit_code=int(end.exit_code) if end is not None and self.state.terminal else None,
        )
        writer.submit(lambda: self.run.put_status(term, status))
        RayMetrics.show(status)

    def _checkpoint_ref(self) -> CheckpointRef | None:
        if self.checkpoint is None:
            return None
        return CheckpointRef(step=Step(self.checkpoint.step), uri=f"{self.run.uri}/{self.checkpoint.key}")
