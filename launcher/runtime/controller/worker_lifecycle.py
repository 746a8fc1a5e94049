"""How single workers come to their end: lost, evicted, not needed, released with a change, drained. Runs in the controller process.

What is decided is returned as work for the controller's queue; nothing is ended here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.core.clock import Clock
from launcher.core.types import Generation, Step, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.events import Policy, WorkerDraining, WorkerEvicted, WorkerLost, WorkerReleased
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter
from launcher.runtime.controller.effects import EndWorkers, Work
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies import failure as f
from launcher.runtime.policies.health import Health, Tie
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.group import Group, Phase
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter

RELEASE_S = 10.0
"""How much longer than its drain a released worker may take to upload its part of a checkpoint."""
UPLOAD_S = 600.0
"""The same for one that nobody is about to take away."""


class WorkerLifecycle:
    """All times are monotonic seconds."""

    def __init__(
        self,
        leadership: Leadership,
        spec: JobSpec,
        registry: WorkerRegistry,
        health: Health,
        recorder: RunRecorder,
        status: StatusWriter,
        tracker: ResizeTracker,
        committer: CheckpointCommitter,
        clock: Clock,
    ) -> None:
        self._leadership, self._spec, self._registry, self._health = leadership, spec, registry, health
        self._recorder, self._status, self._tracker, self._committer, self._clock = recorder, status, tracker, committer, clock
        self._history = f.History()
        self._unproven: tuple[frozenset[WorkerId], Step] | None = None
        """Until the present generation has committed a step beyond the one with which it was formed: its members that had not done so before."""
        self._released: dict[WorkerId, float] = {}
        """Who has left with a change and may still upload, and until when."""

    @property
    def released(self) -> tuple[WorkerId, ...]:
        """Those that have left with a change and may still upload."""
        return tuple(self._released)

    @property
    def no_offers(self) -> str:
        """Why no more workers are to be offered; "": they are."""
        return self._history.no_offers

    # looking after them

    def look(self, now: float) -> Iterator[list[Work]]:
        """Who has to be lost by now. Each item has to be done before the next one is asked for: it changes what the next loss means."""
        group = self._leadership.group
        if self._unproven is not None and group.committed > self._unproven[1]:
            self._judge(f.FirstCommit(bool(self._unproven[0])))
            self._unproven = None
        step_s = self._registry.step_s(group.ranks)
        if step_s is not None:
            self._health.step_time(step_s)
        for verdict in self._health.verdicts(now):
            if isinstance(verdict, Tie):
                yield [e.Stuck(verdict.reason)]
            else:
                yield self.lose(verdict.worker, verdict.reason, "evicted", detect_s=verdict.seconds)
        limit = self._spec.config.elastic.capacity_timeout_s
        for record in [each for each in self._registry.records.values() if each.placed and each.ready_since is None]:
            if now - record.started_at > limit:
                reason = f"worker {record.worker} did not become ready within {limit:g} s (elastic.capacity_timeout_s)"
                yield self.lose(record.worker, reason, "evicted")
        for worker in [worker for worker, until in self._released.items() if now > until]:
            yield self.let_go(worker, uploaded=False)

    # what happens to them

    def ready(self, worker: WorkerId) -> None:
        self._registry.records[worker].ready_since = self._clock.monotonic()
        self._judge(f.BecameReady())

    def desired_changed(self) -> None:
        """A person changed the size: what was not tried any more is tried again."""
        self._judge(f.DesiredChanged())

    def drain(self, worker: WorkerId, deadline_s: float, detail: str) -> None:
        """A worker will be taken away in `deadline_s` seconds; it leaves with the next change."""
        record = self._registry.records[worker]
        leave_by = self._clock.monotonic() + deadline_s
        record.leave_by = min(leave_by, record.leave_by) if record.leave_by is not None else leave_by
        self._recorder.event(WorkerDraining(worker=worker, deadline_s=round(deadline_s, 1), detail=detail))
        self._status.soon()

    def changed(self, changed: e.Changed) -> None:
        """A generation was formed by all of its members."""
        now, ranks = self._clock.monotonic(), changed.formation.ranks
        newcomers = set(ranks) - set(changed.before)
        for worker in newcomers:
            if (record := self._registry.records.get(worker)) is not None:
                record.joined_at = now
        unproven = self._unproven[0] & set(ranks) if self._unproven is not None else frozenset()
        self._unproven = unproven | newcomers if changed.before else frozenset(), changed.step
        self._health.formed(ranks, now)

    def lose(self, worker: WorkerId, reason: str, cause: str, *, detect_s: float | None = None, error: m.Error | None = None) -> list[Work]:
        """A worker is dead, or is evicted: it is not heard again, and the policy says what that means for the job.

        `cause`: lost, evicted or error; `detect_s`: from its last sign of life to this notice; `error`: what it said itself.
        """
        group = self._leadership.group
        record = self._registry.remove(worker)
        if record is None or group.phase is Phase.ENDED:
            return []
        rank = group.ranks.index(worker) if worker in group.ranks else None
        member = rank is not None or (group.proposal is not None and record.used and worker in group.proposal.everybody)
        headline = reason.partition("\n")[0]
        kind = WorkerEvicted if cause == "evicted" else WorkerLost
        self._recorder.event(kind(worker=worker, rank=rank, pid=record.pid, node=record.host, reason=headline))
        fresh = self._unproven is not None and worker in self._unproven[0]
        verdict = self._judge(_failure(worker, reason, group, member=member, fresh=fresh, error=error), without=worker)
        self._health.forget(worker)
        end = EndWorkers((worker,))
        if isinstance(verdict, f.Fail):
            return [end, e.Failed(verdict.reason, verdict.exit_code)]
        if isinstance(verdict, f.StopOffering):
            self._recorder.event(Policy(reason=verdict.reason.partition("\n")[0]))
        if member and group.phase is Phase.TRAINING:
            self._tracker.lost(cause, headline, group.ranks, detect_s)
        elif member:
            self._tracker.lost_meanwhile(cause, headline)
        return [end, e.Gone(worker, headline, cause)]

    def dismiss(self, workers: Sequence[WorkerId]) -> list[Work]:
        """End workers that are not needed, or cannot be used; they are no members."""
        for worker in workers:
            self._registry.remove(worker)
            self._health.forget(worker)
        gone = [e.Gone(worker, "it is not needed", "cancelled") for worker in workers]
        return [EndWorkers(tuple(workers)), *gone] if workers else []

    def release(self, workers: Sequence[WorkerId]) -> None:
        """They have left with a change: they end when their part of a checkpoint is uploaded."""
        now = self._clock.monotonic()
        for worker in workers:
            record = self._registry.remove(worker)
            self._health.forget(worker)
            leave_by = record.leave_by if record is not None else None
            self._released[worker] = now + UPLOAD_S if leave_by is None else max(now, leave_by) + RELEASE_S
            self._recorder.event(WorkerReleased(worker=worker))

    def let_go(self, worker: WorkerId, *, uploaded: bool) -> list[Work]:
        """The end of a released worker."""
        if self._released.pop(worker, None) is None:
            return []
        if not uploaded:
            earlier = Generation(self._recorder.generation - 1)
            self._committer.abandon_unfinished(earlier, f"worker {worker} ended before it had uploaded its part")
        return [EndWorkers((worker,))]

    # the failure policy

    def _judge(self, event: f.Event, without: WorkerId | None = None) -> f.Verdict | None:
        self._history, verdict = f.judge(self._history, event, self._standing(without))
        return verdict

    def _standing(self, without: WorkerId | None) -> f.Standing:
        group = self._leadership.group
        members = [worker for worker in group.ranks if worker != without]
        warm = [worker for worker in group.warm if worker != without]
        return f.Standing(
            committed=group.committed,
            others=len(members) if group.ranks else len(warm),
            ready=len(warm) if group.ranks else 0,
            starting=sum(record.ready_since is None for record in self._registry.records.values()),
            minimum=self._leadership.desired.workers.min,
        )


def _failure(worker: WorkerId, reason: str, group: Group, *, member: bool, fresh: bool, error: m.Error | None) -> f.Event:
    """What the end of a worker is for the failure policy."""
    if error is not None and member:
        return f.Error(worker, error.step or Step(0), reason, error.exit_code, error.recoverable)
    if error is not None:
        return f.StartFailed(worker, "user" if error.recoverable else "launcher", reason, error.exit_code)
    return f.Loss(worker, group.generation, reason, fresh) if member else f.StartFailed(worker, "death", reason)
