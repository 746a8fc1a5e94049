"""A controller's shell as the simulation has it: link, clock and store; every decision is the real Coordinator's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.core.errors import StoreUnavailable
from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.protocol.coordinator import Phase
from launcher.runtime.protocol.participant import CommittedAssignment
from launcher.runtime.records import inheritance as office
from tests.simulation.loop import Died
from tests.simulation.network import Connection, Message
from tests.simulation.officer import LEDGER_S, TICK_S, Officer
from tests.simulation.saving import generation_of

if TYPE_CHECKING:
    pass

BATCH = 8
SILENT_S = 2.5
LEAVE_S = 2.0
PREPARE_S = 4.0
STUCK_S = 5.0
SAVE_S = 5.0


class Controller(Officer):
    # what is heard

    def hears(self, link: Connection) -> bool:
        """Whoever was given up is not heard any more."""
        return self.links.get(link.worker.name) is link and link.worker.name not in self.evicted

    def heard(self, link: Connection, message: Message) -> None:
        worker = link.worker.name
        if not self.hears(link):
            if worker in self.evicted and link.open:
                link.to_worker(("end", "evicted"))
            return
        self.heard_at[worker] = self.loop.now
        kind = message[0]
        if kind == "found":
            if not self.serving:
                self.found[worker] = (message[1], message[2])
            return
        if not self.serving:
            self.early.append((link, message))
            if kind == "beat" and worker in self.found:
                found, saves = self.found[worker]
                self.found[worker] = office.since_answered(found, message[2], message[3]), saves
            return
        if self.ending is not None:
            return
        if kind == "beat":
            _, ready, generation, applied, formed, formed_at, outcome, out, draining = message
            if ready:
                self._handle(m.Ready(worker))
            if formed:
                self._handle(m.Formed(worker, generation, formed_at))
            if applied is not None:
                self._handle(m.Applied(worker, generation, applied))
            if outcome is not None:
                self._handle(m.Ended(worker, generation, outcome))
            if out:
                self._handle(m.Left(worker, generation, applied))
            if draining:
                self.draining.add(worker)
        elif kind == "ready":
            self._handle(m.Ready(worker))
        elif kind == "loaded":
            self._handle(m.Loaded(worker, message[1]))
        elif kind == "corrupt":
            if self.checkpoint is not None and self.checkpoint.step == message[1]:
                self._handle(m.Corrupt(worker, "a chunk is damaged"))
        elif kind == "prepared":
            self._handle(m.Prepared(worker, message[1]))
        elif kind == "refused":
            self._handle(m.Refused(worker, message[1], message[2]))
        elif kind == "formed":
            self._handle(m.Formed(worker, message[1], message[2]))
        elif kind == "left":
            self._handle(m.Left(worker, message[1], message[2]))
        elif kind == "ended":
            self._handle(m.Applied(worker, message[1], message[2]))
            self._handle(m.Ended(worker, message[1], message[3]))
        elif kind == "error":
            self._lost(worker, f"{worker} raised: {message[1]}", "evicted")
        elif kind == "row":
            self.rows.take(message[1])
            if self.whole:
                self._commit_rows()
        elif kind == "saved":
            self._saved(worker, message[1])

    def lost_connection(self, link: Connection) -> None:
        worker = link.worker.name
        if not self.hears(link):
            return
        if not self.serving:
            self.found.pop(worker, None)
            self.evicted.add(worker)
            return
        self._lost(worker, f"{worker} is gone", "lost")

    def _lost(self, worker: WorkerId, reason: str, cause: str) -> None:
        if worker in self.evicted:
            return
        self._check_office()
        self._close(worker, reason)
        self._handle(m.Gone(worker, reason, cause))

    def _close(self, worker: WorkerId, reason: str) -> None:
        """It is told nothing more, and ended where that can be done."""
        if self.loop.tracing:
            self.loop.note(f"{self.name} gives up {worker}: {reason}")
        self.evicted.add(worker)
        self.cluster.check.gave_up(self, worker)
        link = self.links.get(worker)
        if link is not None:
            if self.cluster.kills(link.worker):
                self.loop.at(self.loop.uniform(0.001, 0.1), None, link.worker.dies, "it was given up")
            link.breaks()

    def _handle(self, event: m.Event) -> None:
        membership = self.membership
        before = membership.phase
        self.cluster.coverage.event(membership, event)
        if self.loop.tracing and type(event) not in (m.Applied, m.Ready):
            self.loop.note(f"{self.name} [{before.value}] hears {event}")
        actions = membership.handle(event)
        if membership.phase is Phase.LEAVING and before is not Phase.LEAVING:
            self.leaving_since = self.loop.now
        self._act(actions)

    # what is done

    def _act(self, actions: list[m.Action]) -> None:
        for action in actions:
            self._may_die()
            self.cluster.on_order(action)
            self.cluster.coverage.action(action)
            if self.loop.tracing:
                self.loop.note(f"{self.name} {action}")
            match action:
                case m.Load(to):
                    info = self.checkpoint
                    assert info is not None
                    self._tell(to, ("load", info.step, info.term))
                case m.Prepare():
                    self._prepare(action)
                case m.Commit():
                    self._commit_change(action)
                case m.Withdraw(generation, to):
                    self._tell(to, ("withdraw", generation))
                case m.Leave(generation, to):
                    self._tell(to, ("leave", generation))
                case m.Release(to):
                    self.released.update(to)
                    self._tell(to, ("release",))
                case m.Stop(to):
                    self._tell(to, ("stop",))
                case m.GiveUp(worker, reason):
                    self._lost(worker, reason, "evicted")
                case m.AbandonSaves():
                    self.saver.abandon_unfinished("a member of the generation that was saving is gone")
                case m.Changed():
                    self.cluster.check.changed(self, action)
                    self.rows.restart(action.step)
                    self._ask_for_rows()
                case m.AllLost():
                    self._start_again(lambda info: True)
                case m.RollBack(corrupt):
                    self._start_again(lambda info, corrupt=corrupt: info.step < corrupt)
                case m.End():
                    self._end(action)

    def _may_die(self) -> None:
        if self.acts_left is not None:
            self.acts_left -= 1
            if self.acts_left < 0:
                self.dies("killed between two actions")
                raise Died

    def _tell(self, to: tuple[WorkerId, ...], message: Message) -> None:
        for worker in to:
            if worker in self.links and worker not in self.evicted:
                self._may_die()
                self.links[worker].to_worker(message)

    def _prepare(self, order: m.Prepare) -> None:
        formation = order.formation
        if self.prepared_at[0] != formation.generation:
            self.prepared_at = (formation.generation, self.loop.now)
            self.cluster.check.proposed(self, formation, order.leaving)
        places = {worker: rank for rank, worker in enumerate(formation.ranks)}
        for worker in order.to:
            self._tell((worker,), ("prepare", formation.generation, places.get(worker), len(formation.ranks), order.leave))

    def _commit_change(self, order: m.Commit) -> None:
        self.cluster.check.decided(self, order)
        self.touched.update(order.formation.ranks)
        going = CommittedAssignment(
            order.formation.generation, order.donors, order.receivers, order.step, order.again, order.hold, order.save
        )
        self._tell(order.to, ("commit", going))

    def _ask_for_rows(self) -> None:
        ranks = self.membership.ranks
        if ranks and ranks[0] in self.links:
            self.links[ranks[0]].to_worker(("rows",), stream=True)

    # rows and checkpoints

    def _saved(self, worker: WorkerId, part: dict[str, Any]) -> None:
        save = (part["step"], part["generation"])
        if self.saver.done(save):
            self.links[worker].to_worker(("decided", save), stream=True)
            return
        if self.saver.begins(save):
            self._handle(m.SaveStarted(Step(save[0]), Generation(save[1])))
        self._handle(m.Applied(worker, Generation(part["generation"]), Step(part["step"])))
        if self.saver.take(part):
            self.whole.append(save)
            self._commit_rows()

    def _flush_then_commit(self, save: tuple[int, int]) -> None:
        """What a manifest rests on is durable before it."""
        self.recorder.flush(ledger=True, durable=self._durable_from_writer)
        self.saver.commit(save)

    def _durable_from_writer(self, step: int) -> None:
        self.post(self._durable, step)

    def _durable(self, step: int) -> None:
        for worker, link in self.links.items():
            if worker not in self.evicted:
                link.to_worker(("durable", step), stream=True)

    def save_decided(self, save: tuple[int, int], failure: str) -> None:
        for worker, link in self.links.items():
            if worker not in self.evicted:
                link.to_worker(("decided", save), stream=True)
        if self.ending is None:
            self._handle(m.SaveDecided(Step(save[0]), failure, Generation(save[1])))

    def _commit_rows(self) -> None:
        committed = self.membership.committed
        self.cluster.check.committed(self, committed)
        for message in self.rows.committed(committed):
            self.cluster.check.row(self, message)
            self.recorder.steps(message["row"], first=message["first"], generation=generation_of(message), batch=BATCH)
        for save in [save for save in self.whole if save[0] <= self.rows.passed]:
            self.whole.remove(save)
            if not self.membership.on_line(Step(save[0]), Generation(save[1])):
                self.saver.abandon(save, "its steps were rolled back")
                continue
            self._flush_then_commit(save)

    # time

    def _tick(self) -> None:
        if self.ending is not None:
            return
        self.at(TICK_S, self._tick)
        now, membership = self.loop.now, self.membership
        for worker in list(membership.peers):
            if worker in self.links and now - self.heard_at[worker] > SILENT_S:
                self._lost(worker, f"{worker} is silent", "silent")
        if membership.phase is Phase.LEAVING and now - self.leaving_since > LEAVE_S:
            for worker in membership.awaited:
                self._lost(worker, f"{worker} does not come out", "evicted")
        proposal = membership.proposal
        if proposal is not None and proposal.committed is None and now - self.prepared_at[1] > PREPARE_S:
            self._handle(m.Expired(proposal.formation.generation))
        self._look_for_movement(now)
        if now >= self.watch_due:
            self.watch_due = now + 1.0
            self._check_office()
            if self.cluster.stop_wanted and not membership.stopping:
                self._handle(m.StopWanted())
        if now >= self.orders_due:
            self.orders_due = now + 1.0
            self._act(self.membership.outstanding())
            self._tell(tuple(sorted(self.released)), ("release",))
            if membership.stopping:
                self._tell(tuple(membership.peers), ("stop",))
            self._want_changes()
        self._commit_rows()
        self.saver.abandon_unfinished("a part did not come", now - SAVE_S)
        if now >= self.ledger_due:
            self.ledger_due = now + LEDGER_S
            self.recorder.flush(ledger=True, durable=self._durable_from_writer)

    def _look_for_movement(self, now: float) -> None:
        membership = self.membership
        known = membership.peers.items()
        seen = (membership.phase, membership.number, tuple((worker, peer.applied, peer.outcome) for worker, peer in known))
        if seen != self.moved[0]:
            self.moved = (seen, now)
        elif now - self.moved[1] > STUCK_S and not membership.held and membership.current is not None:
            self.moved = (seen, now)
            self._handle(m.Stuck("nothing moves"))

    def _want_changes(self) -> None:
        """The policy: as many as are wanted, without those that are about to go."""
        membership, target = self.membership, self.cluster.target
        staying = [worker for worker in membership.ranks if worker not in self.draining]
        warm = [worker for worker in membership.warm if worker not in self.draining]
        unready = [worker for worker, peer in membership.peers.items() if not peer.ready or worker not in (*membership.ranks, *warm)]
        for _ in range(target - len(staying) - len(warm) - len(unready)):
            self._start_worker()
        if membership.phase is Phase.ASSEMBLING:
            if warm and (len(warm) >= target or (len(warm) >= self.cluster.minimum and self.loop.now - self.warm_since > 3.0)):
                self._handle(m.ChangeWanted(join=tuple(warm), cause="start"))
            return
        join = tuple(warm[: max(0, target - len(staying))])
        leave = (*(worker for worker in membership.ranks if worker in self.draining), *staying[target:])
        if join or leave:
            self._handle(m.ChangeWanted(join, leave))

    def _start_worker(self) -> None:
        worker = self.cluster.start_worker()
        if worker is None:
            return
        self._handle(m.Started(worker.name))
        self._attach(worker)
        self.heard_at[worker.name] = self.loop.now + 1.0

    # the end

    def _end(self, end: m.End) -> None:
        self._check_office()
        self.ending = end
        self._commit_rows()
        self.recorder.flush(ledger=True)
        document = self.cluster.status(self.term, end.state, self.membership.committed)

        def write() -> None:
            if self.writer_run.highest_term() > self.term:
                self.post(self.fence)
                return
            try:
                self.writer_run.put_status(self.term, document)
            except StoreUnavailable:
                if self.cluster.plain_run.status(self.term) is None:
                    raise
            self.cluster.check.ended(self, end)
            self.post(self._ended)

        self.writer.submit(write)

    def _ended(self) -> None:
        for worker, link in self.links.items():
            if worker not in self.evicted:
                self.loop.at(0.01, None, link.worker.dies, "the run has ended")
        self.dies("the run has ended")
