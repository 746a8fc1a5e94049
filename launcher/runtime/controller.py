"""The controller of one run: observe, decide, act. It is the only place that acts, and it never touches a tensor.

Everything that happens comes through one queue: the link's messages, what Ray says, wishes, the writer's answers. What follows is
decided elsewhere: membership.py (the protocol), scaling.py (who should be in), failures.py (what a loss means), health.py (who is
given up). What is committed is shown, what is not is kept back.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import BackendUnavailable, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.run_store import LEASE_S, Desired, RunStore, TermBase
from launcher.core.store import is_local, local_path, open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, WorkerId
from launcher.runtime import failures as f
from launcher.runtime import membership as m
from launcher.runtime import scaling
from launcher.runtime.draining import NodeDrain, NodeDrains
from launcher.runtime.entrypoint import FENCED
from launcher.runtime.health import Beat, Health, Patience, Tie
from launcher.runtime.link import LinkEvent, LinkServer
from launcher.runtime.link_store import Rendezvous
from launcher.runtime.log_tail import LogTail
from launcher.runtime.office import base_on_checkpoint, base_on_workers, inherit
from launcher.runtime.progress import Progress
from launcher.runtime.recorder import Recorder
from launcher.runtime.roster import Hand, Roster
from launcher.runtime.saver import Save, Saver
from launcher.runtime.status_board import StatusBoard
from launcher.runtime.store_writer import StoreWriter
from launcher.runtime.timeline import Timeline
from launcher.runtime.watcher import Watcher
from launcher.runtime.worker_group import WorkerGroup, wait_for_ray
from launcher.spec.job import JobSpec
from launcher.spec.status import JobState
from launcher.tracking.sinks import Tracker, open_tracker
from launcher.training.batch import share

TICK_S = 0.1
POLICY_INTERVAL_S = 0.25
REPEAT_S = 1.0
"""Orders that were not answered are said again after so long."""
PREPARE_TIMEOUT_S = 10.0
LEDGER_INTERVAL_S = 10.0
ATTACH_TIMEOUT_S = 4.0
"""A worker that does not answer a new controller for so long is given up."""
PLACED_S = 5.0
"""A worker that Ray has not placed for so long waits for capacity."""
RELEASE_S = 10.0
"""How much longer than its drain a released worker may take to upload its part of a checkpoint."""

Call = Callable[[], None]


class Fenced(Exception):
    """A higher term was claimed: this controller is no longer in office."""


class Controller:
    def __init__(self, run: RunStore, state_folder: Path, *, clock: Clock) -> None:
        self._run, self._state_folder, self._clock = run, state_folder, clock
        self._inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._secret = secrets.token_bytes(32)
        self._roster = Roster()
        self._rendezvous = Rendezvous()
        self._history = f.History()
        self._end: m.End | None = None
        self._timeline: Timeline | None = None
        self._asked_at: float | None = None
        """When a person's wish changed the bounds, until it is carried out."""
        self._prepared_at: tuple[Generation, float] | None = None
        self._changed_at: float | None = None
        self._waiting_since: float | None = None
        self._warming: tuple[float, int, float] | None = None
        """While newcomers warm up: since when, at which step, and what a step took before."""
        self._slowdown: float | None = None
        self._costs = scaling.MeasuredCosts()
        self._topic = ""
        self._released: dict[WorkerId, float] = {}
        self._policy_due = self._repeat_due = self._ledger_due = 0.0
        self._first_seen = self._fenced = False
        self._serving = False
        """Whether there is a link, and there may be workers."""
        self._failure: LauncherError | None = None
        self._tracker: Tracker | None = None

    # taking office

    def take_office(self) -> bool:
        """Claim a term, look, say what it builds on, and begin. False when the run has ended and nobody wants more of it."""
        desired, spec = self._wishes()
        self._desired, self._spec = desired, spec
        if inherit(self._run).ended(desired):
            return False
        self._term = self._claim()
        self._left = inherit(self._run)
        self._board = StatusBoard(self._run, self._clock, spec)
        self._board.inherit(self._left)
        elastic = spec.config.elastic
        self._health = Health(Patience(silence_s=elastic.silence_s, hang_s=elastic.hang_s))
        self._writer = StoreWriter(self._run.store.uri, self._writer_failed)
        self._recorder = Recorder(self._run, self._term, self._writer, self._clock)
        self._watcher = Watcher(
            self._run, self._term, wished=lambda wish: self._post(lambda: self._wished(wish)), fenced=lambda: self._post(self._fence)
        )
        before = self._left.status
        self._group = m.Membership(
            minimum=desired.workers.min, load=False, generation=Generation(before.generation if before is not None else 0)
        )
        self._progress = Progress.after(self._left, Step(0), spec)
        self._workers = WorkerGroup(spec, self._run.store.uri, self._run.run_id, self._state_folder / "code")
        if desired.state == "stopped":
            self._found(base_on_checkpoint(self._left, self._newest()))
            self._act([m.End(JobState.STOPPED, "stopped before training began", ExitCode.STOPPED)])
            return True
        try:
            place = wait_for_ray(self._state_folder / "ray.json", self._state_folder / "error.txt")
            self._board.dashboard = place.dashboard
            self._workers.connect(place)
            self._link = LinkServer(
                self._secret, lambda event: self._post(lambda: self._heard(event)), host=_address_towards(place.address)
            )
            self._address = self._link.start()
        except (LauncherError, OSError) as error:
            self._found(base_on_checkpoint(self._left, self._newest()))
            reason = str(error) if isinstance(error, LauncherError) else f"the controller cannot listen for its workers: {error}"
            self._act([m.End(JobState.FAILED, reason, ExitCode.INFRASTRUCTURE)])
            return True
        self._tail = LogTail(lambda worker, stream, line: self._post(lambda: self._log(worker, stream, line)))
        self._drains = NodeDrains(lambda drain: self._post(lambda: self._node_drains(drain)))
        self._saver = Saver(
            self._run,
            self._term,
            self._writer,
            spec,
            decided=lambda save, failure: self._post(lambda: self._save_decided(save, failure)),
            fenced=lambda: self._post(self._fence),
            clock=self._clock,
        )
        self._serving = True
        found = self._find_workers()
        if not self._adopt(found):
            self._start_from(self._newest())
        return True

    def _wishes(self) -> tuple[Desired, JobSpec]:
        desired = self._run.desired()
        document = self._run.spec(desired.spec) if desired is not None else None
        if desired is None or document is None:
            raise BackendUnavailable("the run has no spec", where=self._run.uri, next="submit it again")
        return desired, JobSpec.from_json(document)

    def _claim(self) -> Any:
        return self._run.claim_term(f"{socket.gethostname()}:{os.getpid()}", timestamp(self._clock.now()))

    def _newest(self) -> CheckpointInfo | None:
        return next(iter(self._left.checkpoints), None)

    def _found(self, base: TermBase) -> None:
        if not self._run.create_base(self._term, base):
            raise Fenced
        adopted = base.adopted_step is not None
        self._progress = Progress.after(self._left, self._left.recorded if adopted else base.start, self._spec)
        lost = 0 if adopted else max(0, self._left.reached - base.start)
        self._board.steps_lost += lost
        self._board.checkpoint = (
            self._newest() if adopted else next((c for c in self._left.checkpoints if c.step == base.checkpoint_step), None)
        )
        self._event(
            "term_started", from_term=base.from_term, checkpoint_step=base.checkpoint_step, adopted_step=base.adopted_step, steps_lost=lost
        )

    def _find_workers(self) -> list[m.Found]:
        """Workers of an earlier term that answer; the others, and those of another spec, are seen off."""
        names = self._workers.find()
        answers: queue.SimpleQueue[tuple[WorkerId, JsonObject | None]] = queue.SimpleQueue()
        for worker in names:
            self._workers.attach(worker, self._term, self._address, self._secret.hex(), lambda w, d, _: answers.put((w, d)))
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        found: list[m.Found] = []
        for _ in names:
            try:
                worker, described = answers.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                break
            facts: Any = described
            if facts and facts["phase"] not in ("failed", "released") and facts["spec"] == self._spec.number:
                now = self._clock.monotonic()
                hand = self._roster.add(worker, now)
                hand.facts, hand.ready_since, hand.touched = facts, now if facts["ready"] else None, facts["generation"] > 0
                self._health.heard(worker, None, now)
                found.append(_found_of(facts))
        self._workers.end([worker for worker in names if worker not in self._roster])
        return found

    def _adopt(self, found: list[m.Found]) -> bool:
        """Take over the workers of an earlier term if somebody among them holds what was recorded, and what was saved."""
        held = [each.applied for each in found if each.applied is not None and each.generation]
        newest = self._newest()
        if not held or max(held) < max(self._left.recorded, newest.step if newest is not None else 0):
            return False
        self._found(base_on_workers(self._left))
        facts: Any = next(self._roster.hands[each.worker].facts for each in found if each.ready)
        self._board.device, self._board.total_steps, self._board.data_size = facts["device"], facts["total_steps"], facts["data_size"]
        self._first_seen = True
        for hand in self._roster.hands.values():
            self._follow(hand.worker, hand.facts, from_end=True)
        actions = self._group.adopt(found)
        if self._group.current is not None:
            self._health.formed(self._group.ranks, self._clock.monotonic())
            self._ask_for_records()
        self._event("workers_adopted", workers=self._roster.describe(self._group.ranks))
        self._act(actions)
        if self._desired.state == "stopped":
            self._handle(m.StopWanted())
        return True

    def _start_from(self, checkpoint: CheckpointInfo | None) -> None:
        """A group from the beginning: of those that live and may be used, and of new ones, as the policy offers them."""
        self._found(base_on_checkpoint(self._left, checkpoint))
        init = self._spec.config.checkpoint.init_from if checkpoint is None else None
        self._group = m.Membership(
            minimum=self._desired.workers.min,
            load=checkpoint is not None or init is not None,
            checkpoint=checkpoint.step if checkpoint else None,
            generation=self._group.number,
        )
        if checkpoint is None:
            # What was trained, or loaded in part, is no beginning: these workers go, new ones begin afresh.
            self._dismiss([hand.worker for hand in self._roster.hands.values() if hand.touched])
        for hand in self._roster.hands.values():
            self._handle(m.Started(hand.worker))
            if hand.ready_since is not None:
                self._handle(m.Ready(hand.worker))

    def _new_term(self, checkpoint: CheckpointInfo | None, left_out: Callable[[CheckpointInfo], bool]) -> None:
        """Every roll-back of training is a new term, also with the same controller."""
        self._recorder.flush(ledger=False)
        self._term = self._claim()
        left = inherit(self._run)
        self._left = replace(left, checkpoints=tuple(info for info in left.checkpoints if not left_out(info)))
        self._recorder = Recorder(self._run, self._term, self._writer, self._clock)
        self._watcher.term = self._term
        self._saver.term = self._term
        self._start_from(checkpoint if checkpoint is not None else self._newest())

    # the loop

    def serve(self) -> int:
        """Until the run has its final state; gives the process's exit code."""
        while self._end is None and not self._fenced:
            try:
                call = self._inbox.get(timeout=TICK_S)
            except queue.Empty:
                call = None
            while call is not None:
                call()
                try:
                    call = self._inbox.get_nowait()
                except queue.Empty:
                    call = None
            self._tick()
        if self._fenced:
            print(f"term {self._term}: a higher term was claimed; this controller ends", flush=True)
            return FENCED
        return self._close()

    def _post(self, call: Call) -> None:
        self._inbox.put(call)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if self._end is not None or not self._serving:
            return
        self._look_after(now)
        if now >= self._policy_due and self._end is None:
            self._policy_due = now + POLICY_INTERVAL_S
            self._steer(now)
        if now >= self._repeat_due and self._end is None:
            self._repeat_due = now + REPEAT_S
            self._repeat(now)
        self._commit()
        for report in self._tracker.reports() if self._tracker is not None else ():
            kind = str(report.pop("kind"))
            self._event(kind, **report)
        due = now >= self._ledger_due
        if due:
            self._ledger_due = now + LEDGER_INTERVAL_S
        self._recorder.flush(ledger=due, durable=lambda step: self._post(lambda: self._durable(step)))
        if now >= self._board.due:
            self._write_status()

    # the protocol

    def _handle(self, event: m.Event) -> None:
        self._act(self._group.handle(event))

    def _act(self, actions: Sequence[m.Action]) -> None:
        for action in actions:
            if self._end is not None:
                return
            self._carry_out(action)

    def _carry_out(self, action: m.Action) -> None:
        now = self._clock.monotonic()
        match action:
            case m.Load(to):
                self._load(to)
            case m.Prepare(formation, _, to):
                if self._prepared_at is None or self._prepared_at[0] != formation.generation:
                    self._prepared_at = (formation.generation, now)
                self._prepare(formation, to)
            case m.Commit():
                if self._timeline is not None:
                    self._timeline.committed(action.formation.generation, now)
                self._commit_to(action)
            case m.Withdraw(generation, to):
                self._timeline = None
                self._event("generation_withdrawn", withdrawn=generation)
                self._tell(to, {"kind": "withdraw", "generation": generation})
            case m.Leave(generation, to):
                self._health.asked(to, now)
                self._tell(to, {"kind": "leave", "generation": generation})
            case m.Release(to):
                self._release(to, now)
            case m.Stop(to):
                self._event("stopping")
                self._tell(to, {"kind": "stop"})
            case m.GiveUp(worker, reason):
                self._post(lambda: self._lose(worker, reason, "evicted"))
            case m.AbandonSaves():
                self._saver.abandon_unfinished("a worker of the generation that saved it is gone; it is saved again")
            case m.Changed():
                self._changed(action, now)
            case m.RollBack(corrupt, detail):
                if self._board.checkpoint is not None and self._board.checkpoint.step == corrupt:
                    self._event("checkpoint_corrupt", checkpoint_step=corrupt, detail=detail)
                    self._new_term(None, lambda info: info.step >= corrupt)
            case m.AllLost(reason):
                self._event("all_lost", detail=reason)
                self._timeline = None
                self._new_term(None, lambda info: False)
            case m.End():
                self._end = action

    def _tell(self, workers: Sequence[WorkerId], message: JsonObject) -> None:
        for worker in workers:
            self._link.send(worker, message)

    def _prepare(self, formation: m.Formation, to: Sequence[WorkerId]) -> None:
        rank_of = {worker: rank for rank, worker in enumerate(formation.ranks)}
        for worker in to:
            self._link.send(
                worker,
                {
                    "kind": "prepare",
                    "generation": formation.generation,
                    "rank": rank_of.get(worker),
                    "world_size": len(formation.ranks),
                },
            )

    def _commit_to(self, commit: m.Commit) -> None:
        for worker in commit.formation.ranks:
            if worker in self._roster:
                self._roster.hands[worker].touched = True
        self._tell(
            commit.to,
            {
                "kind": "commit",
                "generation": commit.formation.generation,
                "donors": list(commit.donors),
                "receivers": list(commit.receivers),
                "step": commit.step,
                "again": commit.again,
                "hold": commit.hold,
                "save": commit.save,
            },
        )

    def _changed(self, changed: m.Changed, now: float) -> None:
        ranks = changed.formation.ranks
        for worker in set(ranks) - set(changed.before):
            self._roster.hands[worker].joined_at = now
        self._health.formed(ranks, now)
        self._progress.restart(changed.step)
        self._ask_for_records()
        self._event(
            "generation_formed", cause=changed.cause, world_size=len(ranks), workers=self._roster.describe(ranks), held=changed.hold
        )
        if changed.before:
            self._board.changes += 1
        if self._timeline is None:
            self._timeline = Timeline(cause=changed.cause, reason=changed.reason, begun_at=now, before=changed.before)
        self._timeline.formed(ranks, changed.step, now, hold=changed.hold)
        if changed.cause != "resize":
            self._changed_at = now
        if changed.hold:
            self._told_change()
        self._board.due = 0.0

    def _ask_for_records(self) -> None:
        if self._group.ranks:
            self._link.send(self._group.ranks[0], {"kind": "records"})

    def _told_change(self) -> None:
        """A change is complete: say how long each part of it took."""
        timeline, self._timeline = self._timeline, None
        if timeline is None or not timeline.before:
            return
        facts = {**timeline.facts(), "at": timestamp(self._clock.now())}
        self._event(
            "resized", **{key: value for key, value in facts.items() if key not in ("step", "generation")}, switched_at=facts["step"]
        )
        self._board.last_change = facts
        self._board.due = 0.0
        pause = facts["pause_s"]
        if isinstance(pause, float):
            grew = len(timeline.after) > len(timeline.before)
            self._costs = replace(self._costs, **{"grow_s" if grew else "shrink_s": pause})

    def _repeat(self, now: float) -> None:
        self._act(self._group.outstanding())
        if self._prepared_at is not None and now - self._prepared_at[1] > PREPARE_TIMEOUT_S:
            generation, self._prepared_at = self._prepared_at[0], None
            self._handle(m.Expired(generation))
        if self._group.stopping:
            self._tell(self._group.ranks, {"kind": "stop"})
        for worker, until in list(self._released.items()):
            if now > until:
                self._let_go(worker)
        if self._progress.lacks_rows(self._group.committed, 2 * self._spec.config.trainer.log_every_steps):
            self._ask_for_records()

    # who stays, who comes, who goes

    def _steer(self, now: float) -> None:
        group, roster, config = self._group, self._roster, self._spec.config
        self._show_state(now)
        if group.stopping or group.phase is m.Phase.ENDED:
            return
        inside = {*group.ranks, *(group.proposal.everybody if group.proposal is not None else ())}
        warm = group.warm
        waiting = [hand for hand in roster.hands.values() if hand.worker not in inside and hand.worker not in warm]
        sizes = [len(share(config.shards, len(group.ranks), rank)) for rank in range(len(group.ranks))]
        snapshot = scaling.Snapshot(
            now=now,
            bounds=self._desired.workers,
            asked=self._asked_at is not None,
            members=roster.members(group.ranks, sizes),
            ready=roster.ready(warm),
            warming=tuple(hand.worker for hand in waiting if hand.facts),
            pending=tuple(hand.worker for hand in waiting if not hand.facts),
            step_s=roster.step_s(group.ranks),
            steps_left=self._board.total_steps - self._progress.step if self._board.total_steps is not None else None,
            costs=self._costs,
            last_change_at=self._changed_at,
            shards=config.shards,
            changing=not group.settled,
            held=group.held,
            no_offers=self._history.no_offers,
        )
        self._board.waiting_for = self._missing(waiting, now)
        plan = scaling.decide(snapshot, config.elastic)
        if plan.cancel is not None:
            self._event("offers_cancelled", workers=list(plan.cancel.workers), reason=plan.cancel.reason)
            self._dismiss(plan.cancel.workers)
        if plan.offer is not None:
            self._event("policy", reason=plan.offer.reason)
            self._offer(plan.offer.count, now)
        self._tell_stragglers(plan)
        match plan.membership:
            case scaling.Change(join, leave, reason):
                self._change(join, leave, reason, now, hold=False)
            case scaling.Hold(_, reason):
                if not group.held:
                    self._change((), (), reason, now, hold=True)
            case scaling.Noop(topic, reason):
                if topic == "settled":
                    self._asked_at = None
                if topic != self._topic and topic not in ("changing", "settled"):
                    self._event("policy", reason=reason)
                self._topic = topic if topic != "changing" else self._topic

    def _missing(self, waiting: Sequence[Hand], now: float) -> str:
        """The capacity that is waited for: of workers that were asked for a while ago and have no place yet."""
        if any(hand.facts for hand in waiting):
            return ""
        count = sum(now - hand.started_at > PLACED_S for hand in waiting)
        each = f" with {self._workers.gpu} GPU each" if self._workers.gpu else ""
        return f"{count} worker{'s' if count != 1 else ''}{each}" if count else ""

    def _change(self, join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], reason: str, now: float, *, hold: bool) -> None:
        draining = any(self._roster.hands[worker].leave_by is not None for worker in leave if worker in self._roster)
        asked = self._asked_at is not None
        if not self._group.ranks:
            cause = "start"
        elif hold:
            cause = "held"
        elif draining:
            cause = "drain"
        elif asked:
            cause = "resize"
        else:
            cause = "grow" if len(join) >= len(leave) else "shrink"
        self._event("policy", reason=reason)
        begun = self._asked_at if asked and not join and self._asked_at is not None else now
        slowdown, self._slowdown = (self._slowdown, None) if join else (None, self._slowdown)
        self._timeline = Timeline(cause=cause, reason=reason, begun_at=begun, before=self._group.ranks, slowdown=slowdown)
        self._handle(m.ChangeWanted(join, leave, cause=cause, reason=reason, hold=hold))

    def _offer(self, count: int, now: float) -> None:
        if self._group.current is not None and self._warming is None:
            step_s = self._roster.step_s(self._group.ranks)
            self._warming = (now, self._group.committed, step_s) if step_s is not None else None
        for worker in self._workers.start(count):
            self._roster.add(worker, now)
            self._handle(m.Started(worker))
            self._workers.attach(
                worker, self._term, self._address, self._secret.hex(), lambda w, d, why: self._post(lambda: self._attached(w, d, why))
            )

    def _warmed_up(self, now: float) -> None:
        """A newcomer is ready: how much slower the others were meanwhile."""
        if self._warming is None:
            return
        (since, step, step_s), self._warming = self._warming, None
        done = self._group.committed - step
        if done >= 3 and now > since:
            self._slowdown = min(1.0, done / (now - since) * step_s)
            self._costs = replace(self._costs, warm_up_s=(1.0 - self._slowdown) * (now - since))

    def _tell_stragglers(self, plan: scaling.Plan) -> None:
        self._board.stragglers = tuple(straggler.worker for straggler in plan.stragglers)
        for straggler in plan.stragglers:
            hand = self._roster.hands[straggler.worker]
            if not hand.slow:
                hand.slow = True
                self._event("straggler", worker=straggler.worker, ratio=round(straggler.ratio, 2), reason=straggler.reason)

    def _show_state(self, now: float) -> None:
        """The run's state from the group's, and the deadline of a wait for capacity."""
        group, board = self._group, self._board
        changing = group.proposal is not None and group.proposal.committed is not None
        training = group.phase is m.Phase.TRAINING and not changing and not group.held
        if training or group.phase is m.Phase.ENDED:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        board.draining = tuple(hand.worker for hand in self._roster.hands.values() if hand.leave_by is not None)
        if group.stopping:
            board.say(JobState.STOPPING, "asked to stop")
        elif training:
            board.say(JobState.RUNNING, "")
        elif group.phase is m.Phase.ASSEMBLING:
            board.say(JobState.STARTING, f"waits for {board.waiting_for}" if board.waiting_for else "workers start")
        elif group.held:
            short = f"{len(group.ranks)} of at least {group.minimum} workers are left; the state is saved and held"
            board.say(JobState.RESIZING, f"{short}{'; waits for ' + board.waiting_for if board.waiting_for else ''}")
        else:
            board.say(JobState.RESIZING, "a new generation of workers is being formed")
        limit = self._spec.config.elastic.capacity_timeout_s
        if self._waiting_since is not None and now - self._waiting_since > limit:
            why = f"waited for {board.waiting_for}" if board.waiting_for else "the workers did not become ready"
            self._act(group.fail(f"no capacity within {limit:g} s (elastic.capacity_timeout_s): {why}", ExitCode.INFRASTRUCTURE))

    def _look_after(self, now: float) -> None:
        step_s = self._roster.step_s(self._group.ranks)
        if step_s is not None:
            self._health.step_time(step_s)
        for verdict in self._health.verdicts(now):
            if isinstance(verdict, Tie):
                self._handle(m.Stuck(verdict.reason))
            else:
                self._lose(verdict.worker, verdict.reason, "evicted", detect_s=verdict.seconds)

    def _lose(self, worker: WorkerId, reason: str, cause: str, *, detect_s: float | None = None, error: Any = None) -> None:
        """A worker is dead, or is given up: it is not heard again, and the policy says what that means for the job."""
        hand = self._roster.hands.get(worker)
        if hand is None or self._end is not None:
            return
        group, now = self._group, self._clock.monotonic()
        rank = group.ranks.index(worker) if worker in group.ranks else None
        proposal = group.proposal
        member = rank is not None or (proposal is not None and proposal.committed is not None and worker in proposal.everybody)
        facts = hand.facts
        self._event(
            "worker_evicted" if cause == "evicted" else "worker_lost",
            worker=worker,
            rank=rank,
            pid=facts.get("pid"),
            node=facts.get("node"),
            detail=reason.partition("\n")[0],
        )
        verdict = self._judge(hand, reason, member=member, error=error)
        self._dismiss([worker], forget=False)
        self._health.forget(worker)
        if isinstance(verdict, f.Fail):
            self._act(group.fail(verdict.reason, verdict.exit_code))
            return
        if isinstance(verdict, f.StopOffering):
            self._event("policy", reason=verdict.reason.partition("\n")[0])
        if member and group.phase is m.Phase.TRAINING:
            self._timeline = Timeline(cause=cause, reason=reason.partition("\n")[0], begun_at=now, before=group.ranks, detect_s=detect_s)
        self._handle(m.Gone(worker, reason.partition("\n")[0], cause))

    def _judge(self, hand: Hand, reason: str, *, member: bool, error: Any) -> f.Verdict | None:
        group = self._group
        others = [worker for worker in group.ranks if worker != hand.worker]
        warm = [worker for worker in group.warm if worker != hand.worker]
        unready = [each for each in self._roster.hands.values() if each.ready_since is None and each is not hand]
        standing = f.Standing(
            committed=group.committed,
            others=len(others) if group.ranks else len(warm),
            ready=len(warm) if group.ranks else 0,
            starting=len(unready),
            minimum=self._desired.workers.min,
        )
        event: f.Event
        if error is not None and member:
            code, user = ExitCode(error["exit_code"]), bool(error["recoverable"])
            event = f.Error(hand.worker, Step(error["step"] or 0), reason, code, user)
        elif error is not None:
            event = f.StartFailed(hand.worker, "user" if error["recoverable"] else "launcher", reason, ExitCode(error["exit_code"]))
        elif member:
            event = f.Loss(hand.worker, group.generation, reason)
        else:
            event = f.StartFailed(hand.worker, "death", reason)
        self._history, verdict = f.judge(self._history, event, standing)
        return verdict

    def _dismiss(self, workers: Sequence[WorkerId], *, forget: bool = True) -> None:
        """End workers that are not, or no longer, in the group."""
        for worker in list(workers):
            self._roster.hands.pop(worker, None)
            if self._serving:
                self._link.drop(worker)
            if forget:
                self._health.forget(worker)
                self._handle(m.Gone(worker, "no longer needed", "cancelled"))
        self._workers.end(list(workers))

    def _release(self, workers: Sequence[WorkerId], now: float) -> None:
        """They have left with a change: they end when their part of a checkpoint is uploaded."""
        for worker in workers:
            hand = self._roster.hands.pop(worker, None)
            self._health.forget(worker)
            self._released[worker] = max(now, hand.leave_by or 0.0 if hand is not None else 0.0) + RELEASE_S
            self._event("worker_released", worker=worker)
        self._tell(workers, {"kind": "release"})

    def _let_go(self, worker: WorkerId) -> None:
        self._released.pop(worker, None)
        self._link.drop(worker)
        self._workers.end([worker])

    # what is heard

    def _attached(self, worker: WorkerId, description: JsonObject | None, why: str) -> None:
        if worker not in self._roster:
            return
        if description is None:
            self._lose(worker, f"worker {worker} died at its start: {why}", "lost")
            return
        hand, now = self._roster.hands[worker], self._clock.monotonic()
        hand.facts = description
        self._health.heard(worker, None, now)
        self._follow(worker, description, from_end=False)
        self._event("worker_started", worker=worker, pid=hand.facts["pid"], node=hand.facts["node"])

    def _follow(self, worker: WorkerId, facts: Any, *, from_end: bool) -> None:
        for stream in ("stdout", "stderr"):
            path = str(facts.get(stream) or "")
            if path and facts["node"] == socket.gethostname():
                self._tail.follow(worker, stream, Path(path), from_end=from_end)

    def _heard(self, event: LinkEvent) -> None:
        worker, message = event.worker, event.message
        if worker in self._released and (message is None or message["kind"] == "released"):
            self._let_go(worker)
            return
        if worker not in self._roster:
            if message is not None and message["kind"] in ("saved", "save_failed"):
                self._take_part(worker, message)
            return
        if message is None:
            self._gone(worker)
            return
        now = self._clock.monotonic()
        self._health.heard(worker, None, now)
        kind: Any = message["kind"]
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(worker, message)

    def _gone(self, worker: WorkerId) -> None:
        """Its connection ended: the first notice of a death. Ray is asked for the cause, for the record."""
        hand = self._roster.hands[worker]
        self._workers.why_dead(worker, lambda w, why: self._post(lambda: self._told_why(w, why)))
        rank = self._group.ranks.index(worker) if worker in self._group.ranks else None
        where = f"{'rank ' + str(rank) + ', ' if rank is not None else ''}pid {hand.facts.get('pid')} on {hand.facts.get('node')}"
        self._lose(worker, f"worker {worker} ({where}) died: its connection ended", "lost")

    def _told_why(self, worker: WorkerId, why: str) -> None:
        if why and self._end is None:
            self._event("worker_died", worker=worker, detail=why)

    def _on_beat(self, worker: WorkerId, message: Any) -> None:
        hand, now = self._roster.hands[worker], self._clock.monotonic()
        hand.busy_s, hand.step_s = message["busy_s"], message["step_s"]
        self._health.heard(worker, Beat.from_json({**message, "applied": message["applied"] or 0, "busy_s": message["busy_s"] or 0.0}), now)
        generation = Generation(message["generation"])
        if message["applied"] is not None:
            self._handle(m.Applied(worker, generation, Step(message["applied"])))
        if message["outcome"] is not None:
            self._handle(m.Ended(worker, generation, m.Outcome(message["outcome"])))
        if message["out"]:
            self._handle(m.Left(worker, generation, message["applied"]))

    def _on_first(self, worker: WorkerId, message: Any) -> None:
        self._on_beat(worker, message)
        if self._timeline is not None and self._timeline.stepped(worker, message["generation"], self._clock.monotonic()):
            self._told_change()
        if not self._first_seen and self._group.committed > self._progress.start:
            self._first_seen = True
            self._event("first_step", at=message["time"])
            self._board.due = 0.0
            self._begin_tracking()

    def _on_ready(self, worker: WorkerId, message: Any) -> None:
        board, hand, now = self._board, self._roster.hands[worker], self._clock.monotonic()
        board.device, board.total_steps, board.data_size = message["device"], message["total_steps"], message["data_size"]
        facts = {key: message[key] for key in ("device", "threads", "fused", "fuse_reason", "import_s", "build_s")}
        self._event("worker_ready", worker=worker, **facts)
        hand.ready_since = now
        self._warmed_up(now)
        self._history, _ = f.judge(self._history, f.Started(), self._standing_now())
        self._handle(m.Ready(worker))
        self._policy_due = 0.0

    def _standing_now(self) -> f.Standing:
        group = self._group
        return f.Standing(
            committed=group.committed, others=len(group.ranks), ready=len(group.warm), starting=0, minimum=self._desired.workers.min
        )

    def _on_loaded(self, worker: WorkerId, message: Any) -> None:
        self._handle(m.Loaded(worker, Step(message["step"])))
        self._policy_due = 0.0

    def _on_corrupt(self, worker: WorkerId, message: Any) -> None:
        if self._board.checkpoint is not None and message["step"] == self._board.checkpoint.step:
            self._handle(m.Corrupt(worker, message["detail"]))

    def _on_prepared(self, worker: WorkerId, message: Any) -> None:
        self._handle(m.Prepared(worker, Generation(message["generation"])))

    def _on_refused(self, worker: WorkerId, message: Any) -> None:
        self._event("generation_refused", worker=worker, refused=message["generation"], detail=message["detail"])
        self._handle(m.Refused(worker, Generation(message["generation"]), message["detail"]))

    def _on_formed(self, worker: WorkerId, message: Any) -> None:
        if self._timeline is not None and message["generation"] == self._timeline.generation:
            self._timeline.formed_by(worker, message)
        self._handle(m.Formed(worker, Generation(message["generation"]), Step(message["step"])))

    def _on_left(self, worker: WorkerId, message: Any) -> None:
        self._health.answered(worker)
        self._handle(m.Left(worker, Generation(message["generation"]), message["applied"]))

    def _on_broken(self, worker: WorkerId, message: Any) -> None:
        self._event("collective_left", worker=worker, detail=message["detail"])

    def _on_row(self, worker: WorkerId, message: Any) -> None:
        self._progress.take(message)

    def _on_evaluated(self, worker: WorkerId, message: Any) -> None:
        if not self._progress.evaluated(message["step"], message["metrics"]):
            return
        row: JsonObject = {"step": message["step"], "time": timestamp(self._clock.now()), **_named("eval_", message["metrics"])}
        self._recorder.row(row)
        self._event("evaluated", at=message["step"], metrics=message["metrics"])
        self._track(message["step"], row)
        self._board.due = 0.0

    def _on_saved(self, worker: WorkerId, message: Any) -> None:
        self._take_part(worker, message)

    _on_save_failed = _on_saved

    def _take_part(self, worker: WorkerId, message: Any) -> None:
        """A part of a checkpoint, or that there will be none; also of a worker that has left meanwhile."""
        failed = message["kind"] == "save_failed"
        part = None if failed else CheckpointPart.from_json(message["part"])
        save = Save(message["step"], message["generation"]) if part is None else Save(part.step, part.generation)
        if self._saver.done(save):
            self._link.send(worker, {"kind": "checkpoint", "step": save.step, "generation": save.generation})
            return
        if self._saver.begins(save):
            self._handle(m.SaveStarted(*save))
        if part is None:
            self._saver.abandon(save, message["detail"])
            return
        self._handle(m.Applied(worker, save.generation, save.step))
        if self._saver.take(part):
            self._commit()
            self._recorder.flush(ledger=True, durable=lambda step: self._post(lambda: self._durable(step)))
            self._saver.commit(save)

    def _on_ended(self, worker: WorkerId, message: Any) -> None:
        generation = Generation(message["generation"])
        self._handle(m.Applied(worker, generation, Step(message["applied"])))
        self._handle(m.Ended(worker, generation, m.Outcome(message["outcome"])))

    def _on_error(self, worker: WorkerId, message: Any) -> None:
        ranks = self._group.ranks
        reason = str(message["reason"])
        rank = ranks.index(worker) if worker in ranks else None
        self._event("worker_error", worker=worker, rank=rank, at=message["step"], detail=reason.partition("\n")[0])
        if self._board.checkpoint is not None and reason.startswith("the loss"):
            reason += f"\n  last good checkpoint: step {self._board.checkpoint.step}"
        self._lose(worker, reason, "error", error=message)

    def _on_draining(self, worker: WorkerId, message: Any) -> None:
        self._drain(self._roster.hands[worker], float(message["deadline_s"]), str(message["detail"]))

    def _node_drains(self, drain: NodeDrain) -> None:
        deadline_s = drain.deadline_s if drain.deadline_s is not None else self._spec.config.elastic.drain_s
        for hand in self._roster.on_node(drain.node_id):
            self._drain(hand, deadline_s, drain.detail)

    def _drain(self, hand: Hand, deadline_s: float, detail: str) -> None:
        leave_by = self._clock.monotonic() + deadline_s
        hand.leave_by = min(leave_by, hand.leave_by) if hand.leave_by is not None else leave_by
        self._event("worker_draining", worker=hand.worker, deadline_s=round(deadline_s, 1), detail=detail)
        self._policy_due = self._board.due = 0.0

    def _on_set(self, worker: WorkerId, message: JsonObject) -> None:
        for receiver, answer in self._rendezvous.heard(worker, message):
            self._link.send(receiver, answer)

    _on_get = _on_set

    def _wished(self, wish: Desired) -> None:
        before, self._desired = self._desired, wish
        if wish.state == "stopped":
            self._handle(m.StopWanted())
        elif wish.workers != before.workers:
            self._group.minimum = wish.workers.min
            self._asked_at = self._clock.monotonic()
            self._history, _ = f.judge(self._history, f.Wished(), self._standing_now())
            bounds = wish.workers
            self._event("resize_wished", by=wish.by, workers=f"{bounds.min}..{bounds.max}", target=bounds.target)
            self._policy_due = self._board.due = 0.0

    def _fence(self) -> None:
        self._fenced = True

    def _log(self, worker: WorkerId, stream: str, line: str) -> None:
        ranks = self._group.ranks
        self._recorder.line(
            {
                "time": timestamp(self._clock.now()),
                "worker": worker,
                "rank": ranks.index(worker) if worker in ranks else None,
                "generation": self._group.generation,
                "stream": stream,
                "line": line,
            }
        )

    def _load(self, to: Sequence[WorkerId]) -> None:
        message: JsonObject = {"kind": "load", "init_from": None}
        checkpoint = self._board.checkpoint
        if checkpoint is not None:
            message |= {"step": checkpoint.step, "term": checkpoint.term}
        else:
            try:
                message["init_from"] = self._origin()
            except LauncherError as error:
                self._end = m.End(JobState.FAILED, str(error), error.exit_code)
                return
        self._tell(to, message)

    def _origin(self) -> JsonObject:
        """The checkpoint that `checkpoint.init_from` means: RUNS/RUN_ID, as the submit has resolved it."""
        runs, _, run_id = str(self._spec.config.checkpoint.init_from).rpartition("/")
        left = inherit(RunStore(open_store(runs), RunId(run_id)))
        if not left.checkpoints:
            raise BackendUnavailable("the run to begin from has no checkpoint", where="checkpoint.init_from", given=f"{runs}/{run_id}")
        return {"runs": runs, "run_id": run_id, "step": left.checkpoints[0].step, "term": left.checkpoints[0].term}

    def _writer_failed(self, error: LauncherError) -> None:
        """On the writer's thread."""
        self._failure = error
        self._post(lambda: self._act(self._group.fail(str(error), ExitCode.INFRASTRUCTURE)))

    # what is shown

    def _commit(self) -> None:
        """Pass on the rows of steps that every member holds."""
        for done in self._progress.committed(self._group.committed):
            self._recorder.steps(done.row, first=done.first, generation=done.generation, batch=self._spec.config.trainer.global_batch_size)
            self._track(done.last, done.row)

    def _begin_tracking(self) -> None:
        # After the first step, so that it costs the start nothing.
        here = is_local(self._run.uri)
        folder = local_path(self._run.uri) / "tracking" if here else self._state_folder / "tracking" / self._run.run_id
        self._tracker = open_tracker(self._spec, folder)
        self._tracker.start()

    def _track(self, step: int, row: JsonObject) -> None:
        if self._tracker is None and self._first_seen:
            self._begin_tracking()
        if self._tracker is not None:
            self._tracker.metrics(step, {key: value for key, value in row.items() if key not in ("step", "time")})

    def _durable(self, step: int) -> None:
        self._tell(list(self._roster.hands), {"kind": "durable", "step": step})

    def _save_decided(self, save: Save, failure: str) -> None:
        info = CheckpointInfo(save.step, self._term)
        if failure:
            self._event("checkpoint_failed", checkpoint_step=save.step, detail=failure)
        else:
            self._board.checkpoint = info
            self._event("checkpoint_committed", checkpoint_step=save.step, uri=f"{self._run.uri}/{info.key}")
            self._saver.retain()
        everybody = [*self._roster.hands, *self._released]
        self._tell(everybody, {"kind": "checkpoint", "step": save.step, "generation": save.generation})
        self._handle(m.SaveDecided(save.step, failure, save.generation))
        self._board.due = 0.0

    def _event(self, kind: str, **facts: object) -> None:
        self._recorder.event(kind, step=self._progress.step, generation=self._group.generation, **facts)

    def _write_status(self) -> None:
        group = self._group
        self._board.write(
            self._writer,
            self._term,
            left=self._left,
            progress=self._progress,
            bounds=self._desired.workers,
            generation=group.generation or group.number,
            members=self._roster.describe(group.ranks) if group.current is not None else [],
            end=self._end,
        )

    # the end

    def _close(self) -> int:
        """Let the workers go, then write the final state: what it says holds from then on."""
        assert self._end is not None
        end = self._end
        self._commit()
        if self._serving:
            self._workers.end()
            self._tail.finish()
            self._drains.stop()
            while not self._inbox.empty():
                self._inbox.get()()
        self._watcher.stop()
        self._told_change()
        self._board.say(end.state, end.reason)
        self._recorder.flush(ledger=True)
        self._event("ended", state=end.state.value, reason=end.reason.partition("\n")[0], exit_code=int(end.exit_code))
        self._recorder.flush(ledger=True)
        self._write_status()
        written = self._drain_writer()
        if self._serving:
            self._link.stop()
        if self._tracker is not None:
            self._tracker.finish(int(end.exit_code))
        if self._serving and written:
            self._saver.finish_deletion(LEASE_S)
        if not written:
            print(f"the final state could not be written: {end.state}. {end.reason}", flush=True)
        return 0

    def _drain_writer(self) -> bool:
        done = threading.Event()
        self._writer.submit(done.set)
        return done.wait(150.0) and self._failure is None


def _found_of(facts: Any) -> m.Found:
    return m.Found(
        worker=WorkerId(facts["worker"]),
        ready=facts["ready"],
        generation=Generation(facts["generation"]),
        rank=facts["rank"],
        world_size=facts["world_size"],
        applied=facts["applied"],
        inside=facts["inside"],
        outcome=m.Outcome(facts["outcome"]) if facts["outcome"] is not None else None,
        pending=facts["pending"],
        knows_commit=facts["knows_commit"],
    )


def _named(prefix: str, metrics: dict[str, float]) -> JsonObject:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _address_towards(address: str) -> str:
    """This machine's address as the Ray at host:port sees it."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def main(arguments: Sequence[str]) -> int:
    runs, run_id, state = arguments
    controller = Controller(RunStore(open_store(runs), RunId(run_id)), Path(state), clock=SystemClock())

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        return controller.serve() if controller.take_office() else 0
    except Fenced:
        return FENCED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
