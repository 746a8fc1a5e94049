"""The status document of a run, as its controller writes it. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import Clock, timestamp
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.jobspec.environment import variables
from launcher.jobspec.job import JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.events import Tracking
from launcher.record.members import LastChange, Member, ResizeFacts
from launcher.record.run_store import STATUS_INTERVAL_S, RunStore
from launcher.record.status import CheckpointRef, JobState, RunStatus
from launcher.runtime.protocol.events import End
from launcher.runtime.protocol.messages import Job
from launcher.runtime.records.inheritance import Inheritance
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.store_writer import StoreWriter


class StatusWriter:
    """What is shown beside progress and membership."""

    def __init__(
        self, run: RunStore, clock: Clock, spec: JobSpec, writer: StoreWriter, left: Inheritance, show: Callable[[RunStatus], None]
    ) -> None:
        """`show` is handed every status that is written, for figures elsewhere."""
        self._run, self._clock, self._spec, self._writer, self._show = run, clock, spec, writer, show
        self._state, self._reason = JobState.STARTING, "starting Ray"
        self._job = Job(device="", total_steps=None, data_size=0)
        self.dashboard = ""
        """Address of the Ray dashboard."""
        self.checkpoint: CheckpointInfo | None = None
        """The newest that is committed."""
        self.steps_lost = 0
        self.changes = 0
        """Of the group, in this run."""
        self.waiting_for = ""
        """The capacity that is missing for the wanted size, in words."""
        self.draining: tuple[WorkerId, ...] = ()
        self.stragglers: tuple[WorkerId, ...] = ()
        self._last_change: LastChange | None = None
        self._tracking: tuple[str, ...] = ()
        self._due = 0.0
        self._sequence = 0
        before = left.status
        self._started_at = before.started_at if before is not None and before.started_at else spec.submitted_at
        if before is not None:
            self._job = msgspec.structs.replace(self._job, total_steps=before.total_steps)
            self.steps_lost, self.changes, self._last_change = before.steps_lost, before.changes, before.last_change

    @property
    def total_steps(self) -> int | None:
        return self._job.total_steps

    def soon(self) -> None:
        """What is shown has changed: write it at the next look."""
        self._due = 0.0

    def due(self, now: float) -> bool:
        """Whether it has to be written again; `now` in monotonic seconds."""
        return now >= self._due

    def set_state(self, state: JobState, reason: str) -> None:
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason = state, reason
            self.soon()

    def know_job(self, job: Job) -> None:
        """What a worker found when it built the job."""
        self._job = job

    def resized(self, facts: ResizeFacts, generation: Generation, step: Step) -> None:
        """A change of the group is complete."""
        of_facts = {name: getattr(facts, name) for name in ResizeFacts.__struct_fields__}
        self._last_change = LastChange(**of_facts, generation=generation, step=step, at=timestamp(self._clock.now()))
        self.soon()

    def tracked(self, report: Tracking) -> None:
        """The tracker has something to say of itself."""
        self._tracking = (*self._tracking, report.message)
        self.soon()

    def wait_for_tracker(self) -> None:
        """The end is decided; it is written when the tracker has finished."""
        self._reason = "passing on the last metrics"

    def end(self, end: End) -> None:
        self._state, self._reason = end.state, end.reason
        self.waiting_for, self.draining, self.stragglers = "", (), ()

    def write(
        self,
        term: Term,
        *,
        progress: Progress,
        bounds: WorkerBounds,
        generation: Generation,
        members: Sequence[Member],
        end: End | None,
    ) -> None:
        moment = timestamp(self._clock.now())
        batch = self._spec.config.trainer.global_batch_size
        self._sequence += 1
        self._due = self._clock.monotonic() + STATUS_INTERVAL_S
        status = RunStatus(
            run_id=self._run.run_id,
            name=self._spec.name,
            state=self._state,
            reason=self._reason,
            step=progress.step,
            total_steps=self._job.total_steps,
            epoch=round(progress.step * batch / self._job.data_size, 3) if self._job.data_size else 0.0,
            term=term,
            generation=generation,
            world_size=len(members),
            workers=bounds,
            members=tuple(members),
            changes=self.changes,
            last_change=self._last_change,
            waiting_for=self.waiting_for,
            draining=self.draining,
            stragglers=self.stragglers,
            steps_lost=self.steps_lost,
            samples_repeated=self.steps_lost * batch,
            train_loss=progress.train_loss,
            metrics=progress.metrics,
            samples_per_s=progress.samples_per_s,
            goodput=progress.goodput(self._spec.submitted_at, self._clock.now()),
            checkpoint=self._checkpoint_ref(),
            device=self._job.device,
            environment=variables(self._spec.config),
            dashboard=self.dashboard,
            tracking=self._tracking,
            submitted_at=self._spec.submitted_at,
            started_at=self._started_at,
            ended_at=moment if self._state.terminal else None,
            updated_at=moment,
            sequence=self._sequence,
            exit_code=int(end.exit_code) if end is not None and self._state.terminal else None,
        )
        self._writer.submit(lambda: self._run.put_status(term, status))
        self._show(status)

    def _checkpoint_ref(self) -> CheckpointRef | None:
        if self.checkpoint is None:
            return None
        return CheckpointRef(step=Step(self.checkpoint.step), uri=f"{self._run.uri}/{self.checkpoint.key}")
