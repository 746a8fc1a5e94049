"""The controller of one run: it takes office, hears, decides and acts. It is the only place that acts, and it never touches a tensor.

Everything that happens comes through one queue: the link's messages, what Ray says, wishes, the writer's answers. What follows is
decided elsewhere: membership.py is the protocol, steering.py says who comes and goes. What is committed is shown, what is not is kept back.
"""

from __future__ import annotations

import argparse
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import BackendUnavailable, ConfigError, LauncherError, StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.jobspec.versions import disagreement, installed_versions, record_image
from launcher.record.desired import Desired
from launcher.record.lineage import TermBase
from launcher.record.run_store import LEASE_S, RunStore
from launcher.record.status import JobState
from launcher.runtime.cluster.log_channel import LogChannel
from launcher.runtime.cluster.log_tail import LogTail
from launcher.runtime.cluster.node_drains import NodeDrain, NodeDrains
from launcher.runtime.cluster.pod_bounds import PodBounds, PodPatches, pod_bounds
from launcher.runtime.cluster.worker_group import RayPlace, WorkerGroup, wait_for_ray
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.dispatcher import Dispatcher
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.controller.store_watcher import StoreWatcher
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.protocol.messages import messages
from launcher.runtime.records.inheritance import (
    Inheritance,
    adoptable,
    base_on_checkpoint,
    base_on_workers,
    claim_and_look,
    inherit,
    since_answered,
)
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.records.store_writer import StoreWriter
from launcher.runtime.supervisor import FENCED
from launcher.runtime.transport.server import MessageServer, Received

TICK_S = 0.1
REPEAT_S = 1.0
"""Orders that were not answered are said again after so long."""
PREPARE_TIMEOUT_S = 10.0
LEDGER_INTERVAL_S = 10.0
ATTACH_TIMEOUT_S = 4.0
"""A worker that does not answer a new controller for so long is given up."""

Call = Callable[[], object]


class Fenced(Exception):
    """A higher term was claimed: this controller is no longer in office."""


class Controller:
    def __init__(
        self,
        run: RunStore,
        state_folder: Path,
        *,
        ray: str | None,
        worker_resource: str | None,
        pod_group: str | None,
        clock: Clock,
        image: str | None = None,
    ) -> None:
        self._run, self._state_folder, self._clock = run, state_folder, clock
        self._ray, self._worker_resource, self._pod_group, self._image = ray, worker_resource, pod_group, image
        self._inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._beats: dict[WorkerId, Any] | None = {}
        """The newest of each worker, until it is decided who is taken over."""
        self._secret = secrets.token_bytes(32)
        self._hearing: Dispatcher
        self._end: m.End | None = None
        self._generation = 0
        """The newest that was formed, for the record."""
        self._prepared: tuple[Generation, float] | None = None
        self._whole: list[Save] = []
        """Checkpoints with all parts, until the rows of their steps are there."""
        self._repeat_due = self._ledger_due = 0.0
        self._fenced = False
        self._cluster: PodBounds | None = None
        self._channel: LogChannel | None = None
        """Where Ray has several machines."""
        self._serving = False
        """Whether there is a link, and there may be workers."""
        self._failure: LauncherError | None = None

    # taking office

    def take_office(self) -> bool:
        """Claim a term, look, say what it builds on, and begin. False when the run has ended and nobody wants more of it."""
        desired, spec = self._wishes()
        self._desired, self._spec = desired, spec
        if inherit(self._run).ended(desired):
            return False
        self._term, self._left = self._claim()
        if self._left.ended(desired):
            return False
        self._generation = max(self._left.generation, self._left.status.generation if self._left.status is not None else 0)
        self._writer = StoreWriter(self._run.store.uri, self._writer_failed)
        self._board = StatusWriter(self._run, self._clock, spec)
        self._board.inherit(self._left)
        self._accounts = RunRecorder(self._run, spec, self._writer, self._clock, self._state_folder)
        self._steering = Reconciler(self, spec, desired.workers, self._board, self._clock)
        self._watcher = StoreWatcher(
            self._run,
            self._term,
            desired.revision,
            wished=lambda wish: self._post(lambda: self._wished(wish)),
            fenced=lambda: self._post(self._deposed),
            failed=self._writer_failed,
        )
        self.group = m.Coordinator(minimum=desired.workers.min, load=False, generation=Generation(self._generation))
        self._workers = WorkerGroup(
            spec, self._run.store.uri, self._run.run_id, self._state_folder / "code", resource=self._worker_resource
        )
        if desired.state == "stopped" and self._left.term is None:
            return self._end_at_once(JobState.STOPPED, "stopped before training began", ExitCode.STOPPED)
        if (refusal := self._judge_image(spec.versions)) is not None:
            return self._end_at_once(JobState.FAILED, str(refusal), ExitCode.INFRASTRUCTURE)
        try:
            if self._ray is not None:
                place = RayPlace(self._ray, "")
            else:
                place = wait_for_ray(self._state_folder / "ray.json", self._state_folder / "error.txt")
            self._board.dashboard = place.dashboard
            self._workers.connect(place)
            self._steering.gpu = self._workers.gpu
            self._link = MessageServer(self._secret, self._hear, host=_address_towards(self._workers.ray_address))
            self._address = self._link.start()
        except LauncherError as error:
            return self._end_at_once(JobState.FAILED, str(error), ExitCode.INFRASTRUCTURE)
        except OSError as error:
            return self._end_at_once(JobState.FAILED, f"the controller cannot listen for its workers: {error}", ExitCode.INFRASTRUCTURE)
        self._tail = LogTail(self._printed)
        if self._ray is not None:
            self._channel = LogChannel(self._workers.log_channel, self._printed)
        self._drains = NodeDrains(lambda drain: self._post(lambda: self._node_drains(drain)))
        self._saver = CheckpointCommitter(
            self._run,
            self._term,
            self._writer,
            spec,
            decided=lambda save, failure, term: self._post(lambda: self._save_decided(save, failure, term)),
            fenced=lambda: self._post(self._deposed),
            clock=self._clock,
        )
        if (group := self._pod_group) is not None:
            self._cluster = PodBounds(lambda: PodPatches(self._run.run_id, group), self._cannot_bound)
        self._hearing = Dispatcher(self, self._steering, self._accounts, self._saver, self._board)
        self._serving = True
        if not self._adopt(self._find_workers()):
            self._start_from(self._newest())
        return True

    def _wishes(self) -> tuple[Desired, JobSpec]:
        desired = self._run.desired()
        document = self._run.spec(desired.spec) if desired is not None else None
        if desired is None or document is None:
            raise BackendUnavailable("the run has no spec", where=self._run.uri, next="submit it again")
        try:
            return desired, JobSpec.from_json(document)
        except (ConfigError, TypeError) as error:  # what another launcher wrote: then that is what there is to say
            wanted: Any = document.get("versions")
            refusal = self._judge_image(wanted) if isinstance(wanted, dict) else None
            raise (refusal or error) from error

    def _judge_image(self, wanted: Mapping[str, str]) -> ConfigError | None:
        """Leave word of what the image has, for those who submit next; the refusal of a job that cannot run in it."""
        if self._image is None:
            return None
        found = installed_versions()
        with suppress(StoreUnavailable):
            record_image(self._run.store, self._image, found, self._clock)
        return disagreement(self._image, wanted, found)

    def _claim(self) -> tuple[Term, Inheritance]:
        return claim_and_look(self._run, f"{socket.gethostname()}:{os.getpid()}", timestamp(self._clock.now()))

    def _newest(self) -> CheckpointInfo | None:
        return next(iter(self._left.checkpoints), None)

    def _end_at_once(self, state: JobState, reason: str, exit_code: ExitCode) -> bool:
        self._found(base_on_checkpoint(self._left, self._newest()))
        self._end = m.End(state, reason, exit_code)
        return True

    def _found(self, base: TermBase) -> None:
        if not self._run.create_base(self._term, base):
            raise Fenced
        adopted = base.adopted_step is not None
        reached = max(self._left.reached, self._accounts.progress.step)
        self._accounts.open(self._term, self._left, self._left.recorded if adopted else base.start)
        if self._serving:
            self._saver.begin_term(
                self._term, base.start, (info.step for info in self._left.checkpoints if adopted or info.step <= base.start)
            )
        self._whole = []
        lost = 0 if adopted else max(0, reached - base.start)
        self._board.steps_lost += lost
        based_on = (info for info in self._left.checkpoints if adopted or info.step == base.checkpoint_step)
        self._board.checkpoint = next(based_on, None)
        self.event(
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
            if facts and facts["phase"] != "failed" and not facts["released"] and facts["spec"] == self._spec.number:
                now = self._clock.monotonic()
                hand = self._steering.roster.add(worker, now)
                hand.ready_since, hand.touched = now if facts["ready"] else None, facts["generation"] > 0
                self._steering.placed(worker, facts)
                found.append(_found_of(facts))
        beats, self._beats = self._beats or {}, None
        found = [
            since_answered(each, Generation(beat["generation"]), beat["applied"]) if (beat := beats.get(each.worker)) else each
            for each in found
        ]
        number = max([self._generation, *(each.seen for each in found), *(each.generation for each in found)])
        self.group = m.Coordinator(minimum=self._desired.workers.min, load=False, generation=Generation(number))
        kept = adoptable(self._left, found)
        for each in found:
            if each not in kept:
                self._steering.roster.hands.pop(each.worker)
                self._steering.health.forget(each.worker)
        self._workers.end([worker for worker in names if worker not in self._steering.roster])
        return kept

    def _adopt(self, found: list[m.Found]) -> bool:
        """Take over the workers of an earlier term if somebody among them holds what was recorded, and what was saved."""
        held = [each.applied for each in found if each.applied is not None and each.generation]
        newest = self._newest()
        if not held or max(held) < max(self._left.recorded, newest.step if newest is not None else 0):
            return False
        self._found(base_on_workers(self._left, (each.worker for each in found)))
        hands = self._steering.roster.hands
        self._hearing.know_job(next(hands[each.worker].facts for each in found if each.ready))
        self._hearing.first_seen = True
        self._accounts.begin_tracking()
        for hand in hands.values():
            self._follow(hand.worker, hand.facts, from_end=True)
        self.group = m.Coordinator(
            minimum=self._desired.workers.min,
            load=False,
            checkpoint=newest.step if newest is not None else None,
            recorded=self._left.recorded,
            generation=self.group.number,
        )
        for step, generation in (save for hand in hands.values() for save in hand.facts["undecided"]):
            save = Save(Step(step), Generation(generation))
            if self._saver.take_over(save):
                self.handle(m.SaveStarted(*save))
        actions = self.group.adopt(found)
        if self.group.current is not None:
            self._generation = self.group.generation
            self._steering.health.formed(self.group.ranks, self._clock.monotonic())
            self._ask_for_records()
        self.event("workers_adopted", workers=self._steering.roster.describe(self.group.ranks))
        self._act(actions)
        if self._desired.state == "stopped":
            self.handle(m.StopWanted())
        return True

    def _start_from(self, checkpoint: CheckpointInfo | None) -> None:
        """A group from the beginning: of those that live and may be used, and of new ones, as the policy offers them."""
        hands = self._steering.roster.hands
        # What was trained is no beginning, and what was loaded in part only where it is loaded anew: these workers go, others come.
        held = {worker for worker, peer in self.group.peers.items() if peer.applied is not None}
        unusable = [hand.worker for hand in hands.values() if hand.worker in held or (hand.touched and checkpoint is None)]
        self._found(base_on_checkpoint(self._left, checkpoint, (worker for worker in hands if worker not in unusable)))
        load = checkpoint is not None or self._spec.config.checkpoint.init_from is not None
        step = checkpoint.step if checkpoint is not None else None
        self.group = m.Coordinator(minimum=self._steering.bounds.min, load=load, checkpoint=step, generation=self.group.number)
        self._steering.dismiss(unusable)
        self._tell(list(hands), {"kind": "term", "term": self._term})
        for hand in list(hands.values()):
            self.handle(m.Started(hand.worker))
            if hand.ready_since is not None:
                self.handle(m.Ready(hand.worker))
        self._steering.soon()
        if self._desired.state == "stopped":
            self.handle(m.StopWanted())

    def _new_term(self, usable: Callable[[CheckpointInfo], bool]) -> None:
        """Every roll-back of training is a new term, also with the same controller."""
        self._accounts.flush(ledger=False)
        self._term, left = self._claim()
        self._left = replace(left, checkpoints=tuple(info for info in left.checkpoints if usable(info)))
        self._watcher.term = self._term
        self._start_from(self._newest())

    # the loop

    def serve(self) -> int:
        """Until the run has its final state; gives the process's exit code."""
        while self._end is None and not self._fenced:
            try:
                call: Call | None = self._inbox.get(timeout=TICK_S)
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

    def _hear(self, event: Received) -> None:
        """On the link's thread."""
        beats = self._beats
        if beats is not None and event.message is not None and event.message["kind"] == "beat":
            beats[event.worker] = event.message
        self._post(lambda: self._hearing.heard(event, self._clock.monotonic()))

    def _post(self, call: Call) -> None:
        self._inbox.put(call)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if self._end is not None:
            return
        self._steering.tick(now)
        if self._cluster is not None:
            living = len(self._steering.roster.hands) + len(self._steering.released)
            self._cluster.want(pod_bounds(self._steering.bounds, living))
        if now >= self._repeat_due:
            self._repeat_due = now + REPEAT_S
            self._repeat(now)
        self._commit()
        for report in self._accounts.reports():
            kind = str(report.pop("kind"))
            self.event(kind, **report)
        due = now >= self._ledger_due
        if due:
            self._ledger_due = now + LEDGER_INTERVAL_S
        self._accounts.flush(ledger=due, durable=self._durable)
        if now >= self._board.due:
            self._write_status()

    def _repeat(self, now: float) -> None:
        """What may have been lost on the way, or takes too long."""
        self._act(self.group.outstanding())
        if self._prepared is not None and now - self._prepared[1] > PREPARE_TIMEOUT_S:
            (generation, _), self._prepared = self._prepared, None
            self.handle(m.Expired(generation))
        if self.group.stopping:
            self._tell(self.group.ranks, {"kind": "stop"})
        self._tell(self._steering.released, {"kind": "release"})
        self._saver.abandon_overdue()
        if self._whole or self._accounts.progress.lacks_rows(self.group.committed, 2 * self._spec.config.trainer.log_every_steps):
            self._ask_for_records()

    # orders

    def handle(self, event: m.Event) -> None:
        before, trained = self.group.ranks, self.group.phase is m.Phase.TRAINING
        actions = self.group.handle(event)
        if trained and self.group.phase is m.Phase.LEAVING:
            self._steering.broke_off(before)
        self._act(actions)

    def fail(self, reason: str, exit_code: ExitCode) -> None:
        self._act(self.group.fail(reason, exit_code))

    def _act(self, actions: Sequence[m.Action]) -> None:
        for action in actions:
            if self._end is None and not self._fenced:
                self._carry_out(action)

    def _carry_out(self, action: m.Action) -> None:
        now, steering = self._clock.monotonic(), self._steering
        match action:
            case m.Prepare(formation, leave=leave):
                if leave:
                    steering.health.asked(self.group.awaited, now)
                if self._prepared is None or self._prepared[0] != formation.generation:
                    self._prepared = (formation.generation, now)
                    self.event("generation_prepared", to_generation=formation.generation, world_size=len(formation.ranks))
                self._send(action)
            case m.Commit(formation):
                for worker in formation.ranks:
                    steering.roster.hands[worker].touched = True
                if steering.timeline is not None:
                    steering.timeline.committed(formation.generation, now)
                self._send(action)
            case m.Withdraw(generation):
                steering.timeline = None
                self.event("generation_withdrawn", to_generation=generation)
                self._send(action)
            case m.Leave(_, to):
                steering.health.asked(to, now)
                self._send(action)
            case m.Stop():
                self.event("stopping")
                self._send(action)
            case m.Release(to):
                steering.release(to, now)
            case m.Load(to):
                self._load(to)
            case m.GiveUp(worker, reason):
                self._post(lambda: steering.lose(worker, reason, "evicted"))
            case m.AbandonSaves(up_to):
                self._saver.abandon_unfinished(up_to, "a worker of the generation that saved it is gone; it is saved again")
            case m.Changed(formation, step=step):
                self._generation = formation.generation
                steering.changed(action, now)
                self._accounts.progress.restart(step)
                self._ask_for_records()
                self._hearing.forget_keys(formation.generation)
                workers = steering.roster.describe(formation.ranks)
                self.event("generation_formed", cause=action.cause, world_size=len(workers), workers=workers, held=action.hold)
            case m.RollBack(corrupt, detail):
                self.event("checkpoint_corrupt", checkpoint_step=corrupt, detail=detail)
                self._new_term(lambda info: info.step < corrupt)
            case m.AllLost(reason):
                self.event("all_workers_lost", reason=reason)
                steering.timeline = None
                self._new_term(lambda info: True)
            case m.End():
                if not self._deposed():
                    self._end = action

    def _send(self, order: m.Prepare | m.Commit | m.Withdraw | m.Leave | m.Stop | m.Release) -> None:
        self._link.send_all(messages(order))

    def send(self, worker: WorkerId, message: JsonObject) -> None:
        self._link.send(worker, message)

    def _tell(self, workers: Sequence[WorkerId], message: JsonObject) -> None:
        for worker in workers:
            self._link.send(worker, message)

    def _ask_for_records(self) -> None:
        self._tell(self.group.ranks[:1], {"kind": "records"})

    def _load(self, to: Sequence[WorkerId]) -> None:
        message: JsonObject = {"kind": "load", "init_from": None}
        checkpoint = self._board.checkpoint
        try:
            message |= {"step": checkpoint.step, "term": checkpoint.term} if checkpoint is not None else {"init_from": self._origin()}
        except LauncherError as error:
            self.fail(str(error), error.exit_code)
            return
        self._tell(to, message)

    def _origin(self) -> JsonObject:
        """The checkpoint that `checkpoint.init_from` means: RUNS/RUN_ID, as the submit has resolved it."""
        runs, _, run_id = str(self._spec.config.checkpoint.init_from).rpartition("/")
        left = inherit(RunStore(open_store(runs), RunId(run_id)))
        if not left.checkpoints:
            raise BackendUnavailable("the run to begin from has no checkpoint", where="checkpoint.init_from", given=f"{runs}/{run_id}")
        return {"runs": runs, "run_id": run_id, "step": left.checkpoints[0].step, "term": left.checkpoints[0].term}

    # processes

    def start_workers(self, count: int) -> list[WorkerId]:
        started = self._workers.start(count, joins=self.group.current is not None)
        for worker in started:
            self._workers.attach(
                worker, self._term, self._address, self._secret.hex(), lambda w, d, why: self._post(lambda: self._attached(w, d, why))
            )
        return started

    def end_workers(self, workers: Sequence[WorkerId]) -> None:
        if not workers or self._deposed():
            return
        for worker in workers:
            self._link.drop(worker)
        self._workers.end(list(workers))

    def release_workers(self, workers: Sequence[WorkerId]) -> None:
        self._send(m.Release(tuple(workers)))

    def _attached(self, worker: WorkerId, description: JsonObject | None, why: str) -> None:
        if worker not in self._steering.roster:
            return
        if description is None:
            self._steering.lose(worker, f"worker {worker} died at its start: {why}", "lost")
            return
        if not description:
            self._deposed()  # it reports to a later term
            return
        self._steering.placed(worker, description)
        self._follow(worker, description, from_end=False)
        self.send(worker, {"kind": "term", "term": self._term})  # which may be another than when it was called
        self.event("worker_started", worker=worker, pid=description["pid"], node=description["node"])

    def _follow(self, worker: WorkerId, facts: Any, *, from_end: bool) -> None:
        here = facts["node"] == socket.gethostname()
        for stream in ("stdout", "stderr"):
            path = str(facts.get(stream) or "")
            if path and here:
                self._tail.follow(worker, stream, Path(path), from_end=from_end)
        if not here and self._channel is not None:
            self._channel.follow(worker, facts["node_ip"], facts["pid"])

    def _printed(self, worker: WorkerId, stream: str, line: str) -> None:
        """On the thread that follows."""
        self._post(lambda: self._log(worker, stream, line))

    # what others say

    def disconnected(self, worker: WorkerId) -> None:
        """The first notice of a death, or of another controller's taking over (`end_workers` looks). Ray is asked for the cause."""
        if self._end is not None:
            return  # it was ended here
        facts = self._steering.roster.hands[worker].facts
        self._workers.why_dead(worker, lambda w, why: self._post(lambda: self._told_why(w, why)))
        rank = f"rank {self.group.ranks.index(worker)}, " if worker in self.group.ranks else ""
        where = f"{rank}pid {facts.get('pid')} on {facts.get('node')}"
        self._steering.lose(worker, f"worker {worker} ({where}) died: its connection ended", "lost")

    def _told_why(self, worker: WorkerId, why: str) -> None:
        if why and self._end is None:
            self.event("worker_died", worker=worker, detail=why)

    def _node_drains(self, drain: NodeDrain) -> None:
        deadline_s = drain.deadline_s if drain.deadline_s is not None else self._spec.config.elastic.drain_s
        for hand in self._steering.roster.on_node(drain.node_id):
            self._steering.drain(hand, deadline_s, drain.detail)

    def _wished(self, wish: Desired) -> None:
        before, self._desired = self._desired, wish
        if wish.state == "stopped":
            self.handle(m.StopWanted())
        elif wish.workers != before.workers:
            bounds = wish.workers
            self.event("resize_wished", by=wish.by, workers=f"{bounds.min}..{bounds.max}", target=bounds.target)
            self._steering.wished(bounds)

    def _cannot_bound(self, why: str) -> None:
        """On a thread of its own."""
        self._post(lambda: self.event("cluster_bounds_refused", detail=why))

    def _deposed(self) -> bool:
        """Before anything that others would feel at once: a controller that stood still may have been replaced meanwhile."""
        with suppress(StoreUnavailable):
            self._fenced = self._fenced or self._run.highest_term() > self._term
        return self._fenced

    def upload_lost(self, worker: WorkerId) -> None:
        """A worker that has left its generation ended before it had uploaded its part."""
        self._saver.abandon_unfinished(Generation(self._generation - 1), f"worker {worker} ended before it had uploaded its part")

    def _log(self, worker: WorkerId, stream: str, line: str) -> None:
        ranks = self.group.ranks
        self._accounts.recorder.line(
            {
                "time": timestamp(self._clock.now()),
                "worker": worker,
                "rank": ranks.index(worker) if worker in ranks else None,
                "generation": self._generation,
                "stream": stream,
                "line": line,
            }
        )

    # checkpoints

    def parts_came(self, save: Save) -> None:
        self._whole.append(save)
        self._commit()

    def _commit(self) -> None:
        """Steps that all hold count from now on; what a manifest rests on is durable before it."""
        self._accounts.commit(self.group.committed)
        for save in [save for save in self._whole if save.step <= self._accounts.progress.passed]:
            self._whole.remove(save)
            if not self.group.on_line(save.step, save.generation):
                self._saver.abandon(save, "its steps were rolled back")
                continue
            self._accounts.flush(ledger=True, durable=self._durable)
            self._saver.commit(save)

    def _writer_failed(self, error: LauncherError) -> None:
        """On the writer's thread."""
        self._failure = error
        self._post(lambda: self.fail(str(error), ExitCode.INFRASTRUCTURE))

    def _durable(self, step: int) -> None:
        """On the writer's thread."""
        self._post(lambda: self._tell(list(self._steering.roster.hands), {"kind": "durable", "step": step}))

    def _save_decided(self, save: Save, failure: str, term: Term) -> None:
        if term != self._term:
            return  # training was rolled back meanwhile, and this one is of another line
        if failure:
            self.event("checkpoint_failed", checkpoint_step=save.step, detail=failure)
        else:
            self._board.checkpoint = info = CheckpointInfo(save.step, self._term)
            self.event("checkpoint_committed", checkpoint_step=save.step, uri=f"{self._run.uri}/{info.key}")
            self._saver.retain()
        everybody = [*self._steering.roster.hands, *self._steering.released]
        self._tell(everybody, {"kind": "checkpoint", "step": save.step, "generation": save.generation})
        self.handle(m.SaveDecided(save.step, failure, save.generation))
        self._board.due = 0.0

    # the record

    def event(self, kind: str, **facts: object) -> None:
        self._accounts.event(kind, generation=self._generation, **facts)

    def _write_status(self) -> None:
        group = self.group
        self._board.write(
            self._writer,
            self._term,
            left=self._left,
            progress=self._accounts.progress,
            bounds=self._steering.bounds,
            generation=self._generation,
            members=self._steering.roster.describe(group.ranks) if group.current is not None else [],
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
            self._drains.stop()
            if self._cluster is not None:
                self._cluster.stop()
            self._tail.finish()
            if self._channel is not None:
                self._channel.finish()
            while not self._inbox.empty():
                self._inbox.get()()
        self._watcher.stop()
        self._steering.tell_change()
        self._board.end(end)
        self._accounts.flush(ledger=True)
        self.event("ended", state=end.state.value, reason=end.reason.partition("\n")[0], exit_code=int(end.exit_code))
        self._accounts.flush(ledger=True)
        self._write_status()
        written = self._drain_writer()
        if self._serving:
            self._link.stop()
        self._accounts.finish(int(end.exit_code))
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
        seen=facts["seen"],
        born=facts["born"],
    )


def _address_towards(address: str) -> str:
    """This machine's address as the Ray at host:port sees it."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="launcher.runtime.controller")
    parser.add_argument("runs")
    parser.add_argument("run_id")
    parser.add_argument("state", type=Path)
    parser.add_argument("--ray", help="address of a Ray that is there; else the local one, which says in the state folder where it is")
    parser.add_argument("--worker-resource", help="of which each worker takes one, where Ray has a place for it")
    parser.add_argument("--pod-group", help="on Kubernetes: the group of worker pods whose bounds follow those of the run")
    parser.add_argument("--image", help="the reference of the image that this runs in, whose versions are to be recorded")
    given = parser.parse_args(arguments)
    run = RunStore(open_store(given.runs), RunId(given.run_id))
    controller = Controller(
        run,
        given.state,
        ray=given.ray,
        worker_resource=given.worker_resource,
        pod_group=given.pod_group,
        image=given.image,
        clock=SystemClock(),
    )

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        return controller.serve() if controller.take_office() else 0
    except Fenced:
        return FENCED
