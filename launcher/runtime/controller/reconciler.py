"""Who comes, who stays, who goes: the policies applied to what is known of the workers, and carried out through the controller.

Scaling and failure policy and the health of workers are decided elsewhere (scaling.py, failures.py, health.py); here their
snapshots are taken and their decisions become events of the protocol, starts and ends of processes, and entries in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from launcher.core.clock import Clock
from launcher.core.exit_codes import ExitCode
from launcher.core.types import JsonObject, Step, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.status import JobState
from launcher.runtime.controller.worker_registry import WorkerRecord, WorkerRegistry
from launcher.runtime.policies import failure as f
from launcher.runtime.policies import scaling
from launcher.runtime.policies.health import Beat, Health, Patience, Tie
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.records.resize_timing import ResizeTiming
from launcher.runtime.records.status_writer import StatusWriter
from launcher.training.shards.batch import share

POLICY_INTERVAL_S = 0.25
PLACED_S = 10.0
"""A worker that Ray has not placed for so long waits for capacity; longer where it needs none but the time to start a process."""
UNHURRIED_S = 60.0
SETTLE_S = 10.0
"""How long a change may keep new offers waiting until its first step is done."""
RELEASE_S = 10.0
"""How much longer than its drain a released worker may take to upload its part of a checkpoint."""
UPLOAD_S = 600.0
"""The same for one that nobody is about to take away."""
LOSSES = ("lost", "evicted", "error")
"""Causes of a change that began with a loss."""


class Office(Protocol):
    """The controller, as it is steered: the one place that acts."""

    group: m.Coordinator

    def handle(self, event: m.Event) -> None: ...

    def fail(self, reason: str, exit_code: ExitCode) -> None: ...

    def event(self, kind: str, **facts: object) -> None: ...

    def start_workers(self, count: int) -> list[WorkerId]:
        """Ask for so many more; each is attached as soon as it is placed."""
        ...

    def end_workers(self, workers: Sequence[WorkerId]) -> None:
        """Close their connections and end their processes."""
        ...

    def release_workers(self, workers: Sequence[WorkerId]) -> None: ...

    def upload_lost(self, worker: WorkerId) -> None:
        """A released worker ended before it had uploaded its part."""
        ...


class Reconciler:
    """All times are monotonic seconds."""

    def __init__(self, office: Office, spec: JobSpec, bounds: WorkerBounds, board: StatusWriter, clock: Clock) -> None:
        self._office, self._spec, self._board, self._clock = office, spec, board, clock
        elastic = spec.config.elastic
        self.bounds = bounds
        self.gpu = 0
        """GPUs of one worker."""
        self.roster = WorkerRegistry()
        self.health = Health(Patience(silence_s=elastic.silence_s, hang_s=elastic.hang_s))
        self.timeline: ResizeTiming | None = None
        """Of the change under way."""
        self._history = f.History()
        self._costs = scaling.MeasuredCosts()
        self._asked_at: float | None = None
        """When a person's wish changed the bounds, until it is carried out."""
        self._changed_at: float | None = None
        self._waiting_since: float | None = None
        self._warming: tuple[float, int, float] | None = None
        """While newcomers warm up: since when, at which step, and what a step took before."""
        self._slowdown: float | None = None
        self._unproven: tuple[frozenset[WorkerId], Step] | None = None
        """Until the present generation has committed a step beyond the one with which it was formed: its members that had not done so before."""
        self._topic = ""
        self._due = 0.0
        self._released: dict[WorkerId, float] = {}
        """Who has left with a change and may still upload, and until when."""

    @property
    def released(self) -> list[WorkerId]:
        return list(self._released)

    def tick(self, now: float) -> None:
        if self._unproven is not None and self._office.group.committed > self._unproven[1]:
            self._history, _ = f.judge(self._history, f.FirstCommit(bool(self._unproven[0])), self._standing(None))
            self._unproven = None
        self._look_after(now)
        if now >= self._due:
            self._due = now + POLICY_INTERVAL_S
            self._show_state(now)
            self._steer(now)
        for worker, until in list(self._released.items()):
            if now > until:
                self.let_go(worker, uploaded=False)

    def soon(self) -> None:
        """Something has changed that may call for a decision."""
        self._due = 0.0

    # the scaling policy

    def _steer(self, now: float) -> None:
        group, config = self._office.group, self._spec.config
        if group.stopping or group.phase is m.Phase.ENDED:
            return
        waiting = self._not_ready()
        self._board.waiting_for = self._missing(waiting, now)
        plan = scaling.decide(self._snapshot(waiting, now), config.elastic)
        if plan.cancel is not None:
            self._office.event("offers_cancelled", workers=list(plan.cancel.workers), reason=plan.cancel.reason)
            self.dismiss(plan.cancel.workers)
        if plan.offer is not None:
            self._office.event("policy", reason=plan.offer.reason)
            self._offer(plan.offer.count, now)
        self._tell_stragglers(plan)
        match plan.membership:
            case scaling.Change(join, leave, reason):
                self._change(join, leave, reason, now, hold=False)
            case scaling.Hold(_, reason) if not group.held:
                self._change((), (), reason, now, hold=True)
            case scaling.Noop("changing", _):
                pass
            case scaling.Noop("capacity", _) if not self._board.waiting_for:
                pass  # nothing is missing but the time that workers take to start
            case scaling.Noop(topic, reason):
                if topic == "settled":
                    self._asked_at = None
                elif topic != self._topic:
                    self._office.event("policy", reason=reason)
                self._topic = topic

    def _not_ready(self) -> list[WorkerRecord]:
        group = self._office.group
        known = {*group.ranks, *group.warm, *(group.proposal.everybody if group.proposal is not None else ())}
        return [hand for hand in self.roster.hands.values() if hand.worker not in known]

    def _snapshot(self, waiting: Sequence[WorkerRecord], now: float) -> scaling.GroupView:
        group, roster, shards = self._office.group, self.roster, self._spec.config.shards
        size = len(group.ranks)
        total = self._board.total_steps
        return scaling.GroupView(
            now=now,
            bounds=self.bounds,
            asked=self._asked_at is not None,
            members=roster.members(group.ranks, [len(share(shards, size, rank)) for rank in range(size)]),
            ready=roster.ready(group.warm),
            warming=tuple(hand.worker for hand in waiting if hand.facts),
            pending=tuple(hand.worker for hand in waiting if not hand.facts),
            step_s=roster.step_s(group.ranks),
            steps_left=total - group.committed if total is not None else None,
            costs=self._costs,
            last_change_at=self._changed_at,
            shards=shards,
            changing=not group.settled,
            settling=self.timeline is not None and now - self.timeline.begun_at < SETTLE_S,
            held=group.held,
            no_offers=self._history.no_offers,
        )

    def _missing(self, waiting: Sequence[WorkerRecord], now: float) -> str:
        """The capacity that is waited for: of workers that were asked for a while ago and have no place yet."""
        if any(hand.facts for hand in waiting):
            return ""
        patience_s = PLACED_S if self.gpu else UNHURRIED_S
        count = sum(now - hand.started_at > patience_s for hand in waiting)
        each = f" with {self.gpu} GPU each" if self.gpu else ""
        return f"{count} worker{'s' if count != 1 else ''}{each}" if count else ""

    def _change(self, join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], reason: str, now: float, *, hold: bool) -> None:
        group = self._office.group
        drains = any(hand.leave_by is not None for worker in leave if (hand := self.roster.hands.get(worker)) is not None)
        if not group.ranks:
            cause = "start"
        elif hold or drains:
            cause = "held" if hold else "drain"
        elif self._asked_at is not None:
            cause = "resize"
        else:
            cause = "grow" if len(join) >= len(leave) else "shrink"
        self._office.event("policy", reason=reason)
        begun = self._asked_at if self._asked_at is not None and not join else now
        self.timeline = ResizeTiming(cause=cause, reason=reason, begun_at=begun, before=group.ranks)
        if join:
            self.timeline.slowdown, self._slowdown = self._slowdown, None
        self._office.handle(m.ChangeWanted(join, leave, cause=cause, reason=reason, hold=hold))

    def _offer(self, count: int, now: float) -> None:
        group = self._office.group
        if group.current is not None and self._warming is None:
            step_s = self.roster.step_s(group.ranks)
            self._warming = (now, group.committed, step_s) if step_s is not None else None
        for worker in self._office.start_workers(count):
            self.roster.add(worker, now)
            self._office.handle(m.Started(worker))

    def _tell_stragglers(self, plan: scaling.ScalingDecision) -> None:
        self._board.stragglers = tuple(straggler.worker for straggler in plan.stragglers)
        for straggler in plan.stragglers:
            hand = self.roster.hands[straggler.worker]
            if not hand.slow:
                hand.slow = True
                self._office.event("straggler", worker=straggler.worker, ratio=round(straggler.ratio, 2), reason=straggler.reason)

    def _show_state(self, now: float) -> None:
        """The run's state from the group's, and the deadline of a wait for capacity."""
        group, board = self._office.group, self._board
        changing = group.proposal is not None and group.proposal.committed is not None
        training = group.phase is m.Phase.TRAINING and not changing and not group.held
        warming = any(hand.facts and hand.ready_since is None for hand in self.roster.hands.values())
        if training or warming or group.phase is m.Phase.ENDED:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        board.draining = tuple(hand.worker for hand in self.roster.hands.values() if hand.leave_by is not None)
        waits = f"waits for {board.waiting_for}" if board.waiting_for else ""
        if group.stopping:
            board.say(JobState.STOPPING, "asked to stop")
        elif training:
            board.say(JobState.RUNNING, "")
        elif group.phase is m.Phase.ASSEMBLING:
            board.say(JobState.STARTING, waits or "workers start")
        elif group.held:
            held = f"{len(group.ranks)} of at least {group.minimum} workers are left; the state is saved and held"
            board.say(JobState.RESIZING, f"{held}; {waits}" if waits else held)
        else:
            board.say(JobState.RESIZING, "a new generation of workers is being formed")
        limit = self._spec.config.elastic.capacity_timeout_s
        if self._waiting_since is not None and now - self._waiting_since > limit:
            why = waits or "the workers that are left form no generation"
            self._office.fail(f"no capacity within {limit:g} s (elastic.capacity_timeout_s): {why}", ExitCode.INFRASTRUCTURE)

    # changes, as they happen

    def changed(self, changed: m.Changed, now: float) -> None:
        ranks = changed.formation.ranks
        newcomers = set(ranks) - set(changed.before)
        for worker in newcomers:
            self.roster.hands[worker].joined_at = now
        unproven = self._unproven[0] & set(ranks) if self._unproven is not None else frozenset()
        self._unproven = unproven | newcomers if changed.before else frozenset(), changed.step
        self.health.formed(ranks, now)
        if changed.before:
            self._board.changes += 1
        if self.timeline is None:
            self.timeline = ResizeTiming(cause=changed.cause, reason=changed.reason, begun_at=now, before=changed.before)
        self.timeline.formed(changed.formation.generation, ranks, changed.step, now, hold=changed.hold)
        if changed.cause != "resize":
            self._changed_at = now
        if self.timeline.complete:
            self.tell_change()
        self._board.due = 0.0

    def broke_off(self, before: tuple[WorkerId, ...]) -> None:
        """The group is told to leave its generation; the survivors may say so before the loss itself is noticed."""
        if self.timeline is None or self.timeline.cause not in LOSSES:
            reason = "workers lost each other"
            self.timeline = ResizeTiming(cause="lost", reason=reason, begun_at=self._clock.monotonic(), before=before)

    def stepped(self, worker: WorkerId, message: Any) -> None:
        """A worker did its first step in a generation."""
        if self.timeline is not None:
            self.timeline.stepped(worker, message["generation"], self._clock.monotonic())
            if self.timeline.complete:
                self.tell_change()

    def tell_change(self) -> None:
        """Say how long each part of the change took."""
        timeline, self.timeline = self.timeline, None
        if timeline is None or not timeline.before or timeline.formed_at is None:
            return
        facts = timeline.facts()
        self._office.event("resized", **{key: value for key, value in facts.items() if key not in ("step", "generation")})
        self._board.told(facts)
        pause = facts["pause_s"]
        if isinstance(pause, float):
            grew = len(timeline.after) > len(timeline.before)
            self._costs = replace(self._costs, grow_s=pause) if grew else replace(self._costs, shrink_s=pause)

    def wished(self, bounds: WorkerBounds) -> None:
        """A person changed the size."""
        self.bounds = bounds
        self._office.group.minimum = bounds.min
        self._asked_at = self._clock.monotonic()
        self._history, _ = f.judge(self._history, f.DesiredChanged(), self._standing(None))
        self._board.due = 0.0
        self.soon()

    # single workers

    def beat(self, worker: WorkerId, message: Any) -> None:
        hand, now = self.roster.hands[worker], self._clock.monotonic()
        hand.busy_s, hand.step_s = message["busy_s"], message["step_s"]
        known = {**message, "applied": message["applied"] or 0, "busy_s": message["busy_s"] or 0.0}
        self.health.heard(worker, Beat.from_json(known), now)

    def placed(self, worker: WorkerId, facts: JsonObject) -> None:
        self.roster.hands[worker].facts = facts
        self.health.heard(worker, None, self._clock.monotonic())

    def ready(self, worker: WorkerId) -> None:
        now = self._clock.monotonic()
        self.roster.hands[worker].ready_since = now
        self._history, _ = f.judge(self._history, f.BecameReady(), self._standing(None))
        if self._warming is not None:
            (since, step, step_s), self._warming = self._warming, None
            done = self._office.group.committed - step
            if done >= 3 and now > since:
                self._slowdown = min(1.0, done / (now - since) * step_s)
                self._costs = replace(self._costs, warm_up_s=(1.0 - self._slowdown) * (now - since))
        self.soon()

    def saved(self, seconds: float) -> None:
        """What a worker took to save its part of a checkpoint."""
        self._costs = replace(self._costs, save_s=seconds)

    def drain(self, hand: WorkerRecord, deadline_s: float, detail: str) -> None:
        leave_by = self._clock.monotonic() + deadline_s
        hand.leave_by = min(leave_by, hand.leave_by) if hand.leave_by is not None else leave_by
        self._office.event("worker_draining", worker=hand.worker, deadline_s=round(deadline_s, 1), detail=detail)
        self._board.due = 0.0
        self.soon()

    def _look_after(self, now: float) -> None:
        step_s = self.roster.step_s(self._office.group.ranks)
        if step_s is not None:
            self.health.step_time(step_s)
        for verdict in self.health.verdicts(now):
            if isinstance(verdict, Tie):
                self._office.handle(m.Stuck(verdict.reason))
            else:
                self.lose(verdict.worker, verdict.reason, "evicted", detect_s=verdict.seconds)
        limit = self._spec.config.elastic.capacity_timeout_s
        for hand in [hand for hand in self.roster.hands.values() if hand.facts and hand.ready_since is None]:
            if now - hand.started_at > limit:
                reason = f"worker {hand.worker} did not become ready within {limit:g} s (elastic.capacity_timeout_s)"
                self.lose(hand.worker, reason, "evicted")

    def lose(self, worker: WorkerId, reason: str, cause: str, *, detect_s: float | None = None, error: Any = None) -> None:
        """A worker is dead, or is given up: it is not heard again, and the policy says what that means for the job."""
        hand = self.roster.hands.pop(worker, None)
        group = self._office.group
        if hand is None or group.phase is m.Phase.ENDED:
            return
        rank = group.ranks.index(worker) if worker in group.ranks else None
        member = rank is not None or (group.proposal is not None and hand.touched and worker in group.proposal.everybody)
        headline = reason.partition("\n")[0]
        kind = "worker_evicted" if cause == "evicted" else "worker_lost"
        self._office.event(kind, worker=worker, rank=rank, pid=hand.facts.get("pid"), node=hand.facts.get("node"), reason=headline)
        fresh = self._unproven is not None and worker in self._unproven[0]
        event = _failure(hand, reason, group, member=member, fresh=fresh, error=error)
        self._history, verdict = f.judge(self._history, event, self._standing(worker))
        self._office.end_workers([worker])
        self.health.forget(worker)
        if isinstance(verdict, f.Fail):
            self._office.fail(verdict.reason, verdict.exit_code)
            return
        if isinstance(verdict, f.StopOffering):
            self._office.event("policy", reason=verdict.reason.partition("\n")[0])
        if member and group.phase is m.Phase.TRAINING:
            now = self._clock.monotonic()
            self.timeline = ResizeTiming(cause=cause, reason=headline, begun_at=now, before=group.ranks, detect_s=detect_s)
        elif member and self.timeline is not None:
            self.timeline.cause, self.timeline.reason = cause, headline
        self._office.handle(m.Gone(worker, headline, cause))
        self.soon()

    def _standing(self, without: WorkerId | None) -> f.Standing:
        group = self._office.group
        members = [worker for worker in group.ranks if worker != without]
        warm = [worker for worker in group.warm if worker != without]
        return f.Standing(
            committed=group.committed,
            others=len(members) if group.ranks else len(warm),
            ready=len(warm) if group.ranks else 0,
            starting=sum(hand.ready_since is None for hand in self.roster.hands.values()),
            minimum=self.bounds.min,
        )

    def dismiss(self, workers: Sequence[WorkerId]) -> None:
        """End workers that are not needed, or cannot be used; they are no members."""
        for worker in workers:
            self.roster.hands.pop(worker, None)
            self.health.forget(worker)
        self._office.end_workers(workers)
        for worker in workers:
            self._office.handle(m.Gone(worker, "it is not needed", "cancelled"))

    def release(self, workers: Sequence[WorkerId], now: float) -> None:
        """They have left with a change: they end when their part of a checkpoint is uploaded."""
        for worker in workers:
            hand = self.roster.hands.pop(worker, None)
            self.health.forget(worker)
            leave_by = hand.leave_by if hand is not None else None
            self._released[worker] = now + UPLOAD_S if leave_by is None else max(now, leave_by) + RELEASE_S
            self._office.event("worker_released", worker=worker)
        self._office.release_workers(workers)

    def let_go(self, worker: WorkerId, *, uploaded: bool) -> None:
        """The end of a released worker."""
        if self._released.pop(worker, None) is not None:
            self._office.end_workers([worker])
            if not uploaded:
                self._office.upload_lost(worker)


def _failure(hand: WorkerRecord, reason: str, group: m.Coordinator, *, member: bool, fresh: bool, error: Any) -> f.Event:
    if error is not None and member:
        return f.Error(hand.worker, Step(error["step"] or 0), reason, ExitCode(error["exit_code"]), bool(error["recoverable"]))
    if error is not None:
        return f.StartFailed(hand.worker, "user" if error["recoverable"] else "launcher", reason, ExitCode(error["exit_code"]))
    return f.Loss(hand.worker, group.generation, reason, fresh) if member else f.StartFailed(hand.worker, "death", reason)
