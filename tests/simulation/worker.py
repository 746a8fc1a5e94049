"""A worker's process: its main thread, background connecting and link as events; what messages mean is the real MessageHandler's to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.checkpoint.catalog import manifest_key
from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Rank, Step, Term, WorkerId, WorldSize
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol import participant as p
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.worker.message_handler import MessageHandler
from launcher.runtime.worker.outbox import Outbox
from launcher.runtime.worker.step_history import StepHistory
from tests.simulation.collective import Group
from tests.simulation.loop import Process
from tests.simulation.network import Connection
from tests.simulation.observed import ObservedParticipant

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.controller import ControllerProcess

BEAT_S = 1.0
LONELY_S = 20.0
"""So long after it lost its controller a worker to which nothing happens ends itself."""
STEP_S = 0.2
JOB = m.Job(device="cpu", total_steps=None, data_size=0)


class Worker(Process):
    """It is what the MessageHandler has to do with (message_handler.Effects)."""

    def __init__(self, cluster: Cluster, name: WorkerId) -> None:
        super().__init__(cluster.loop)
        self.cluster, self.name = cluster, name
        self.isolated = False
        self.participant = ObservedParticipant()
        self.participant.coverage = cluster.coverage
        self.handler = MessageHandler(self.participant, self)
        self.outbox = Outbox()
        self.term = self.born = Term(0)
        self.link: Connection | None = None
        self.phase = "building"
        self.progress = 0
        """Forward passes."""
        self.stops = False
        self.finishes = False
        self.load_order: m.Load | None = None
        """Not begun yet."""
        self.state: int | None = None
        self.history = StepHistory(1, cluster.spec.config.trainer.global_batch_size, cluster.save_every)
        self.uploading: set[tuple[Step, Generation]] = set()
        self.group: Group | None = None
        self.committed: p.CommittedAssignment | None = None
        self.waiting_in: Group | None = None
        self.token = 0
        """Of what the main thread waits for; whatever carries an older one is late."""
        self.busy = True
        """The main thread builds, computes, loads or saves, or has ended."""
        self.cut_off = False
        self.raises = False
        self.parked = False
        self.alone_since = 0.0
        self.told_by = ""
        """The controller that spoke of the newest generation first."""
        self.groups: dict[Generation, Group] = {}
        """Those that are being formed, or are formed and not entered."""
        self.stepped_in: Group | None = None
        """The newest group in which it did a step."""
        self.at(cluster.loop.uniform(0.2, 0.6), self._warm)
        self.at(BEAT_S * cluster.loop.rng.random(), self._beat)

    # the process

    def dies(self, why: str) -> None:
        if not self.alive:
            return
        if self.loop.tracing:
            self.loop.note(f"{self.name} dies: {why}")
        self.alive = False
        for group in (*self.groups.values(), self.group):
            self._give_up(group)
        if self.link is not None:
            self.link.breaks()
        self.cluster.worker_died()

    def _warm(self) -> None:
        self.phase, self.busy = "ready", False
        self.say(m.Ready(JOB, threads=1, fused=True, fuse_reason="", import_s=0.0, build_s=0.0))
        self._look()

    def _beat(self) -> None:
        if self.link is not None:
            self.link.to_controller(self._signs())
        elif self.term and self.loop.now - self.alone_since > LONELY_S:
            self.dies("nobody called it for too long")
            return
        self.at(BEAT_S, self._beat)

    def _signs(self) -> m.Beat:
        me = self.participant
        return m.Beat(
            generation=me.assignment.generation,
            applied=me.applied,
            outcome=me.outcome,
            out=me.out,
            formed_at=me.formed_at if me.formed else None,
            ready=self._ready,
            phase=self.phase,
            progress=self.progress,
            waiting=self.waiting_in is not None,
            busy_s=STEP_S,
            step_s=STEP_S,
        )

    @property
    def _ready(self) -> bool:
        return self.phase not in ("building", "failed")

    # the link

    def listens_to(self, link: Connection) -> bool:
        """Whoever led before is not heard any more."""
        return link is self.link

    def attach(self, term: Term, controller: ControllerProcess) -> m.WorkerDescription | None:
        """A controller calls: only one of a higher term than the present one is answered."""
        if term <= self.term:
            return None
        old, self.link = self.link, Connection(self.cluster, controller, self, term)
        self.term, self.born = term, self.born or term
        self.cluster.check.attached(self)
        self.link.to_controller(m.Hello(self.name, asks=False))
        for message in self.outbox.messages(self.loop.now):
            self.link.to_controller(message)
        if old is not None:
            old.breaks()
        if self.parked:
            self.parked = False
            self._next_step()
        return m.WorkerDescription(
            state=self.participant.state(self.name, ready=self._ready, born=self.born),
            phase=self.phase,
            released=self.participant.released,
            spec=self.cluster.spec.number,
            pid=1,
            node="node",
            job=JOB if self._ready else None,
            undecided=self.outbox.undecided,
            stdout="",
            stderr="",
        )

    def received(self, link: Connection, message: m.ToWorker) -> None:
        if not self.listens_to(link):
            return
        self.cluster.check.obeys(self, link.term)
        if isinstance(message, m.Prepare) and message.generation > self.participant._seen:
            self.told_by = link.controller.name
        self.handler.receive(message)
        self._look()

    def lost_connection(self, link: Connection) -> None:
        if link is not self.link:
            return
        self.link = None
        self.alone_since = self.loop.now
        self.at(1.0, self._ask_whether_evicted, link.controller)

    def _ask_whether_evicted(self, controller: ControllerProcess) -> None:
        """Whoever evicted it says so; another controller has to call it."""
        if self.link is not None:
            return
        if controller.alive and not controller.frozen and not self.isolated and self.name in controller.server.evicted:
            self.dies("evicted")
            return
        self.at(1.0, self._ask_whether_evicted, controller)

    # what the handler wants done (message_handler.Effects)

    def say(self, message: m.ToController) -> None:
        if isinstance(message, m.Prepared):
            self.cluster.check.acknowledged(self, self.told_by, message.generation)
        if self.loop.tracing:
            self.loop.note(f"{self.name} {message}")
        self.outbox.said(message, self.loop.now)
        if self.link is not None:
            self.link.to_controller(message)

    def connect(self, assignment: p.Assignment) -> None:
        group = self.groups[assignment.generation] = self.cluster.group(self.told_by, assignment.generation, assignment.world_size)
        assert assignment.rank is not None
        self.at(self.loop.uniform(0.001, 0.1), self._connect, group, assignment.rank)

    def discard(self, generation: Generation) -> None:
        self._give_up(self.groups.pop(generation, None))

    def _give_up(self, group: Group | None) -> None:
        if group is not None:
            for rank, each in group.seats.items():
                if each is self:
                    group.leave(rank)

    def cut(self) -> None:
        self.cut_off = True
        if self.waiting_in is not None:
            self.at(self.loop.uniform(0.001, 0.1), self.breaks, self.token)

    def value(self, value: m.Value) -> None: ...

    def load(self, order: m.Load) -> None:
        self.load_order = order

    def stop(self) -> None:
        self.stops = True

    def finish(self) -> None:
        self.finishes = True

    def send_records(self) -> None:
        if self.participant.assignment.rank == 0:
            for row in self.history.rows:
                self.say(row)

    def forget_records(self, step: Step) -> None:
        self.history.forget(step)

    def forget_save(self, step: Step, generation: Generation) -> None:
        self.outbox.forget_save(step, generation)

    def term_began(self, term: Term) -> None:
        assert self.link is not None
        self.link.term = self.term = max(self.term, term)
        self.cluster.check.attached(self)

    def evicted(self) -> None:
        self.dies("evicted")

    # in the background: a group that is being formed

    def _connect(self, group: Group, rank: int) -> None:
        pending = self.participant.pending
        if pending is not None and pending.generation == group.key[1]:
            group.connect(self, rank)

    def connected(self, generation: Generation) -> None:
        pending = self.participant.pending
        if pending is None or pending.generation != generation or not self.participant._connected:
            self.handler.connected(generation, 0.0)
            self._look()

    def connect_failed(self, generation: Generation, detail: str) -> None:
        me = self.participant
        if me.pending is not None and me.pending.generation == generation and not me._connected:
            self._give_up(self.groups.pop(generation, None))
            self.handler.could_not_connect(generation, detail)
            self._look()

    # the main thread

    def waits(self, group: Group) -> None:
        self.token += 1
        self.waiting_in = group

    def _look(self) -> None:
        """For what there is to do, where it is free."""
        if self.busy or self.participant.inside:
            return
        if self.finishes:
            self.busy, self.phase = True, "released"
            self._end()
        elif self.load_order is not None:
            order, self.load_order = self.load_order, None
            self.busy, self.phase = True, "loading"
            self.at(self.loop.uniform(0.05, 0.2), self._loaded, order)
        elif self.participant.may_enter:
            self.busy = True
            self.at(self.loop.uniform(0.001, 0.02), self._enter)

    def _enter(self) -> None:
        self.busy = False
        me = self.participant
        if not me.may_enter:
            self._look()
            return
        newcomer = me.applied is None
        assert me.pending is not None
        group = self.groups.pop(me.pending.generation)
        committed = self.handler.enter()
        self.group, self.committed, self.cut_off, self.phase = group, committed, False, "training"
        rank = me.assignment.rank
        assert rank is not None
        if self.loop.tracing:
            self.loop.note(f"{self.name} enters {group.key} as rank {rank}, applied {me.applied}, {committed}")
        self.cluster.check.entered(self, group)
        if rank in committed.donors and newcomer and me.applied == 0:
            self.state = self.cluster.states.fresh(self.name)
        if rank in committed.receivers and newcomer:
            self.state = None
        group.enter(self, rank)

    def _waited(self, token: int) -> bool:
        """Whether this is what the main thread waits for, or a late thing."""
        if token != self.token or self.waiting_in is None:
            return False
        assert self.group is not None
        fate = self.group.fate(self)
        if fate == "done":
            self.waiting_in = None
        elif fate == "broken":
            self.breaks(token)
        return fate == "done"

    def breaks(self, token: int) -> None:
        if token != self.token or self.waiting_in is None:
            return
        self._come_out()

    def _leave_group(self) -> None:
        self.waiting_in = None
        self.token += 1
        self.cut_off = False
        rank = self.participant.assignment.rank
        assert self.group is not None
        assert rank is not None
        self.group.leave(rank)

    def _come_out(self) -> None:
        self._leave_group()
        self.phase = "waiting"
        self.say(m.Broken("its collective broke, or was cut"))
        self.handler.carry_out(self.participant.came_out())
        self._look()

    def shared(self, token: int) -> None:
        group, committed, me = self.group, self.committed, self.participant
        if not self._waited(token):
            if token == self.token and self.waiting_in is not None and group is not None and not group.gone:
                self.at(0.3, self.shared, token)
            return
        assert group is not None
        assert committed is not None
        rank = me.assignment.rank
        assert rank is not None
        self.cluster.check.donors(group, committed)
        step = committed.step if committed.step is not None else group.snapshot[committed.donors[0]][1]
        if rank in committed.receivers:
            donor = committed.donors[int(self.loop.rng.random() * len(committed.donors))]
            self.state, _, history = group.snapshot[donor]
            self.history.take(history)
        assert step is not None
        self.cluster.check.holds(self, step)
        self.handler.holds(step, move_s=0.0, pause_s=0.0)
        self._look()
        if committed.save or committed.hold:
            self._save()
        if committed.hold:
            self._after_saving(Outcome.HELD)
        else:
            self._next_step()

    def _next_step(self) -> None:
        applied = self.participant.applied
        assert applied is not None
        if applied >= self.cluster.total_steps:
            self._save()
            self._after_saving(Outcome.FINISHED)
            return
        if self.link is None and applied % self.cluster.save_every == 0:
            self.parked = True
            return
        self.busy = True
        self.token += 1
        self.at(self.loop.uniform(0.1, 0.3) * self.cluster.slowness(), self._hand_in, self.token)

    def _hand_in(self, token: int) -> None:
        self.busy = False
        me, group = self.participant, self.group
        assert group is not None
        assert me.applied is not None
        rank = me.assignment.rank
        assert rank is not None
        if self.raises:
            self._fail()
            return
        if self.cut_off:
            self._come_out()
            return
        self.progress += 1
        flags = me.switch_wanted, self.stops
        self.cluster.check.computes(self, group, me.applied + 1)
        group.arrive(self, rank, me.applied + 1, flags)

    def _fail(self) -> None:
        self._leave_group()
        self.busy, self.phase = True, "failed"
        me = self.participant
        error = "ZeroDivisionError in the job's code"
        self.say(m.Error(error, int(ExitCode.JOB_FAILED), me.applied, me.assignment.generation, recoverable=True))

    def stepped(self, token: int, step: int, switch: bool, stop: bool) -> None:
        group, me = self.group, self.participant
        if not self._waited(token):
            if token == self.token and self.waiting_in is not None and group is not None and not group.gone:
                self.at(0.3, self.stepped, token, step, switch, stop)
            return
        assert group is not None
        assert self.state is not None
        self.state = self.cluster.states.after(self.state, step, group.key)
        me.applies(Step(step))
        row = self.history.add(  # the loss is the number of the state
            Step(step), me.assignment.generation, loss=self.state, metrics={}, seconds=STEP_S, time="", grad_norm=None
        )
        assert row is not None
        self.cluster.check.completed(self, group, step)
        if self.stepped_in is not group:
            self.stepped_in = group
            self.say(m.FirstStep("", self._signs()))
        if me.assignment.rank == 0:
            self.say(row)
        self.cluster.stepped(self)
        if step % self.cluster.save_every == 0 and step < self.cluster.total_steps:
            self._save()
        if switch:
            self.cluster.check.switches(self, group)
            self.cut_off, self.phase = False, "waiting"
            self.handler.carry_out(me.switched())
            self._look()
        elif stop:
            self._save()
            self._after_saving(Outcome.STOPPED)
        else:
            self._next_step()

    def _after_saving(self, outcome: Outcome) -> None:
        self.busy = True
        self.at(self.loop.uniform(0.1, 0.4), self._ended, outcome)

    def _ended(self, outcome: Outcome) -> None:
        self.busy = False
        self.cut_off, self.phase = False, "waiting"
        self.handler.carry_out(self.participant.ended(outcome))
        self._look()

    def _save(self) -> None:
        """Take a copy; it is written in the background, and said to every controller until one has decided."""
        me, group = self.participant, self.group
        assert group is not None
        assert me.assignment.rank is not None
        key = me.applied or Step(0), me.assignment.generation
        if key in self.uploading or key in self.outbox.undecided:
            return
        rank, digest = me.assignment.rank, f"{self.state}-{me.assignment.rank}"
        part = CheckpointPart(
            step=key[0],
            generation=key[1],
            rank=Rank(rank),
            world_size=WorldSize(group.size),
            chunk_count=group.size,
            chunks=(ChunkRef(rank, digest, 0),),
            tensors=() if rank == 0 else None,
            state={"number": self.state} if rank == 0 else None,
        )
        self.uploading.add(key)
        self.at(self.loop.uniform(0.02, 0.09), self._saved, key, part)

    def _saved(self, key: tuple[Step, Generation], part: CheckpointPart) -> None:
        self.uploading.discard(key)
        for chunk in part.chunks:
            self.cluster.store.put(f"r/blobs/{chunk.digest}", b"")
        self.say(m.Saved.of(part, 0.05))
        if self.phase == "released":
            self._end()

    def _end(self) -> None:
        """Released: what is being uploaded still counts, then the controller ends this process."""
        if not self.uploading:
            self.say(m.Released())

    # the checkpoint of the term's base

    def _loaded(self, order: m.Load) -> None:
        self.busy, self.phase = False, "ready"
        assert order.step is not None
        assert order.term is not None
        key = manifest_key(order.step, order.term)
        if key in self.cluster.damaged:
            self.handler.loaded(order, m.Corrupt(order.step, "a chunk is damaged"))
        else:
            manifest = self.cluster.plain_run.read(key)
            assert manifest is not None, "a checkpoint that was named is not there"
            state = manifest["state"]
            assert isinstance(state, dict)
            self.state = int(str(state["number"]))
            self.handler.loaded(order, m.Loaded(order.step))
        self._look()
