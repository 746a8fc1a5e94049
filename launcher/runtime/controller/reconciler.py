"""Desired against observed: a view of the group for the scaling policy, its decision, and what follows from it. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.core.clock import Clock
from launcher.core.types import WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.desired import Desired
from launcher.record.events import OffersCancelled, Policy, ResizeWished, Straggler
from launcher.runtime.controller.effects import StartWorkers, Work
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.run_state import CapacityDeadline, describe
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_registry import WorkerRecord, WorkerRegistry
from launcher.runtime.policies import scaling
from launcher.runtime.policies.views import GroupView
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.group import Phase
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.training.shards.batch import share

PLACED_S = 10.0
"""A worker that Ray has not placed for so long waits for capacity; longer where it needs none but the time to start a process."""
UNHURRIED_S = 60.0


class Reconciler:
    """All times are monotonic seconds."""

    def __init__(
        self,
        leadership: Leadership,
        spec: JobSpec,
        registry: WorkerRegistry,
        lifecycle: WorkerLifecycle,
        tracker: ResizeTracker,
        recorder: RunRecorder,
        status: StatusWriter,
        clock: Clock,
        timing: Timing,
        *,
        gpu: int,
    ) -> None:
        """`gpu`: GPUs of one worker."""
        self._leadership, self._spec, self._registry, self._lifecycle = leadership, spec, registry, lifecycle
        self._tracker, self._recorder, self._status, self._clock, self._timing = tracker, recorder, status, clock, timing
        self._gpu = gpu
        self._deadline = CapacityDeadline(spec.config.elastic.capacity_timeout_s)
        self._asked_at: float | None = None
        """When a person changed the bounds, until that is carried out."""
        self._changed_at: float | None = None
        """When the last change that nobody asked for was made."""
        self._topic = ""
        """Of the last reason that was recorded why the membership stays."""
        self._due = 0.0

    def soon(self) -> None:
        """Something has changed that may call for a decision."""
        self._due = 0.0

    def desired_changed(self, desired: Desired) -> None:
        """A person changed the size."""
        bounds = desired.workers
        self._recorder.event(ResizeWished(by=desired.by, workers=f"{bounds.min}..{bounds.max}", target=bounds.target))
        self._leadership.group.minimum = bounds.min
        self._asked_at = self._clock.monotonic()
        self._lifecycle.desired_changed()
        self._status.soon()
        self.soon()

    def changed(self, changed: e.Changed) -> None:
        """A generation was formed by all of its members."""
        if changed.cause != "resize":
            self._changed_at = self._clock.monotonic()

    def look(self, now: float) -> list[Work]:
        """Every `policy_s` seconds, and when something has changed: the run's state, and what the scaling policy wants."""
        if now < self._due:
            return []
        self._due = now + self._timing.policy_s
        overdue = self._show_state(now)
        return [*([overdue] if overdue is not None else []), *self._reconcile(now)]

    def _show_state(self, now: float) -> e.Failed | None:
        group, status, records = self._leadership.group, self._status, self._registry.records.values()
        status.draining = tuple(record.worker for record in records if record.leave_by is not None)
        if group.phase is not Phase.ENDED:
            status.set_state(*describe(group, status.waiting_for))
        warming = any(record.placed and record.ready_since is None for record in records)
        return self._deadline.look(group, status.waiting_for, now, warming=warming)

    # the scaling policy

    def _reconcile(self, now: float) -> list[Work]:
        group = self._leadership.group
        if group.stopping or group.phase is Phase.ENDED:
            return []
        waiting = self._not_ready()
        self._status.waiting_for = self._missing(waiting, now)
        decision = scaling.decide(self._view(waiting, now), self._spec.config.elastic)
        work: list[Work] = []
        if decision.cancel is not None:
            self._recorder.event(OffersCancelled(workers=decision.cancel.workers, reason=decision.cancel.reason))
            work += self._lifecycle.dismiss(decision.cancel.workers)
        if decision.offer is not None:
            self._recorder.event(Policy(reason=decision.offer.reason))
            work.append(self._offer(decision.offer.count))
        self._tell_stragglers(decision)
        return [*work, *self._membership(decision.membership, now)]

    def _membership(self, wanted: scaling.Change | scaling.Hold | scaling.Noop, now: float) -> list[Work]:
        group = self._leadership.group
        match wanted:
            case scaling.Change(join, leave, reason):
                return [self._change(join, leave, reason, now, hold=False)]
            case scaling.Hold(_, reason) if not group.held:
                return [self._change((), (), reason, now, hold=True)]
            case scaling.Noop("capacity", _) if not self._status.waiting_for:
                pass  # nothing is missing but the time that workers take to start
            case scaling.Noop(topic, reason) if topic != "changing":
                if topic == "settled":
                    self._asked_at = None
                elif topic != self._topic:
                    self._recorder.event(Policy(reason=reason))
                self._topic = topic
        return []

    def _not_ready(self) -> list[WorkerRecord]:
        group = self._leadership.group
        known = {*group.ranks, *group.warm, *(group.proposal.everybody if group.proposal is not None else ())}
        return [record for record in self._registry.records.values() if record.worker not in known]

    def _view(self, waiting: Sequence[WorkerRecord], now: float) -> GroupView:
        group, registry, shards = self._leadership.group, self._registry, self._spec.config.shards
        size, total, begun_at = len(group.ranks), self._status.total_steps, self._tracker.begun_at
        return GroupView(
            now=now,
            bounds=self._leadership.desired.workers,
            asked=self._asked_at is not None,
            members=registry.members(group.ranks, [len(share(shards, size, rank)) for rank in range(size)]),
            ready=registry.ready(group.warm),
            warming=tuple(record.worker for record in waiting if record.placed),
            pending=tuple(record.worker for record in waiting if not record.placed),
            step_s=registry.step_s(group.ranks),
            steps_left=total - group.committed if total is not None else None,
            costs=self._tracker.costs,
            last_change_at=self._changed_at,
            shards=shards,
            changing=not group.settled,
            settling=begun_at is not None and now - begun_at < self._timing.settle_s,
            held=group.held,
            no_offers=self._lifecycle.no_offers,
        )

    def _missing(self, waiting: Sequence[WorkerRecord], now: float) -> str:
        """The capacity that is waited for: of workers that were asked for a while ago and have no place yet."""
        if any(record.placed for record in waiting):
            return ""
        patience_s = PLACED_S if self._gpu else UNHURRIED_S
        count = sum(now - record.started_at > patience_s for record in waiting)
        each = f" with {self._gpu} GPU each" if self._gpu else ""
        return f"{count} worker{'s' if count != 1 else ''}{each}" if count else ""

    def _change(self, join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], reason: str, now: float, *, hold: bool) -> e.ChangeWanted:
        cause = self._cause(join, leave, hold=hold)
        self._recorder.event(Policy(reason=reason))
        begun = self._asked_at if self._asked_at is not None and not join else now
        self._tracker.wanted(cause, reason, begun, self._leadership.group.ranks, joins=bool(join))
        return e.ChangeWanted(join, leave, cause=cause, reason=reason, hold=hold)

    def _cause(self, join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], *, hold: bool) -> str:
        if not self._leadership.group.ranks:
            return "start"
        if hold:
            return "held"
        records = self._registry.records
        if any(worker in records and records[worker].leave_by is not None for worker in leave):
            return "drain"
        if self._asked_at is not None:
            return "resize"
        return "grow" if len(join) >= len(leave) else "shrink"

    def _offer(self, count: int) -> StartWorkers:
        group = self._leadership.group
        if group.current is not None:
            self._tracker.newcomers_asked_for(group.committed, self._registry.step_s(group.ranks))
        return StartWorkers(count)

    def _tell_stragglers(self, decision: scaling.ScalingDecision) -> None:
        self._status.stragglers = tuple(straggler.worker for straggler in decision.stragglers)
        for straggler in decision.stragglers:
            record = self._registry.records[straggler.worker]
            if not record.slow:
                record.slow = True
                self._recorder.event(Straggler(worker=straggler.worker, ratio=round(straggler.ratio, 2), reason=straggler.reason))
