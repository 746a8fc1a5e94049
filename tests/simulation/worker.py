"""A worker's shell as the simulation has it: main thread, background connecting, link; the protocol is the real Participant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.checkpoint.catalog import manifest_key
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol import participant as p
from launcher.runtime.protocol.coordinator import Outcome
from launcher.runtime.protocol.participant import Assignment, CommittedAssignment, Participant
from tests.simulation.collective import Group
from tests.simulation.loop import Process
from tests.simulation.network import Connection, Message

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

BEAT_S = 0.5
LONELY_S = 20.0
"""So long after it lost its controller a worker to which nothing happens ends itself."""


class Worker(Process):
    def __init__(self, cluster: Cluster, name: WorkerId) -> None:
        super().__init__(cluster.loop)
        self.cluster, self.name, self.born = cluster, name, 0
        self.isolated = False
        self.participant = Participant()
        self.term = 0
        self.link: Connection | None = None
        self.ready = False
        self.stop = False
        self.draining = False
        self.state: int | None = None
        self.rows: dict[int, dict[str, Any]] = {}
        self.saves: dict[tuple[int, int], dict[str, Any]] = {}
        self.group: Group | None = None
        self.going: CommittedAssignment | None = None
        self.waiting_in: Group | None = None
        self.token = 0
        """Of what the main thread waits for; whatever carries an older one is late."""
        self.busy = False
        """The main thread computes, loads or saves."""
        self.cut = False
        self.raises = False
        self.parked = False
        self.alone_since = 0.0
        self.seat_term = 0
        self.at(cluster.loop.uniform(0.2, 0.6), self._warm)
        self.at(BEAT_S * cluster.loop.rng.random(), self._beat)

    # the process

    def dies(self, why: str) -> None:
        if not self.alive:
            return
        if self.loop.tracing:
            self.loop.note(f"{self.name} dies: {why}")
        self.alive = False
        if self.group is not None and self.participant.seat.rank is not None:
            self.group.leave(self.participant.seat.rank)
        for group in self.cluster.groups.values():
            for rank, each in group.seats.items():
                if each is self:
                    group.leave(rank)
        if self.link is not None:
            self.link.breaks()
        self.cluster.worker_died(self)

    def _warm(self) -> None:
        self.ready = True
        self._say("ready")

    def _beat(self) -> None:
        part, loop = self.participant, self.loop
        link = self.link
        if link is not None:
            link.to_controller(
                ("beat", self.ready, part.seat.generation, part.applied, part.formed, part.formed_at, part.outcome, part.out, self.draining)
            )
        elif self.term and loop.now - self.alone_since > LONELY_S:
            self.dies("nobody called it for too long")
            return
        self.at(BEAT_S, self._beat)

    # the link

    def listens_to(self, link: Connection) -> bool:
        """Whoever was in office before is not heard any more."""
        return link is self.link

    def attach(self, link: Connection) -> None:
        """A controller calls: only one of a higher term than the present one is answered."""
        if link.term <= self.term:
            return
        if self.link is not None:
            self.link.breaks()
        self.term, self.link = link.term, link
        self.born = self.born or link.term
        self.cluster.check.attached(self)
        found = self.participant.found(self.name, ready=self.ready, born=Term(self.born))
        link.to_controller(("found", found, tuple(self.saves)), stream=True)
        for part in self.saves.values():
            link.to_controller(("saved", part), stream=True)
        if self.parked:
            self.parked = False
            self._next_step()

    def heard(self, link: Connection, message: Message) -> None:
        if not self.listens_to(link):
            return
        self.cluster.check.obeys(self, link.term)
        kind = message[0]
        if kind == "prepare":
            seat = Assignment(message[1], message[2], message[3])
            if seat.generation > self.participant._seen:
                self.seat_term = link.term
            self._play("prepare", seat, leave=message[4])
        elif kind == "commit":
            self._play("commit", message[1])
        elif kind == "withdraw":
            self._play("withdraw", message[1])
        elif kind == "leave":
            self._play("leave", message[1])
        elif kind == "release":
            self._play("release")
        elif kind == "stop":
            self.stop = True
        elif kind == "load":
            self._load(message[1], message[2])
        elif kind == "durable":
            self.rows = {last: row for last, row in self.rows.items() if last > message[1]}
        elif kind == "decided":
            self.saves.pop(message[1], None)
        elif kind == "rows":
            self._say_rows()
        elif kind == "end":
            self.dies(f"it was told to: {message[1]}")

    def lost_connection(self, link: Connection) -> None:
        if link is not self.link:
            return
        self.link = None
        self.alone_since = self.loop.now
        self.at(1.0, self._call_again, link)

    def _call_again(self, link: Connection) -> None:
        """Whoever gave it up says so; another controller has to call it."""
        if self.link is not None:
            return
        controller = link.controller
        if controller.alive and not controller.paused and not self.isolated and controller.term == self.term:
            self.dies("evicted")
            return
        self.at(1.0, self._call_again, link)

    def _say(self, kind: str, *facts: Any, stream: bool = False) -> None:
        if self.link is not None:
            self.link.to_controller((kind, *facts), stream=stream)

    def _say_rows(self) -> None:
        for last in sorted(self.rows):
            self._say("row", self.rows[last], stream=True)

    # the protocol

    def _play(self, verb: str, *arguments: Any, **named: Any) -> Any:
        part = self.participant
        self.cluster.coverage.participant(verb, part)
        answer = getattr(part, verb)(*arguments, **named)
        if isinstance(answer, list):
            self._act(answer)
            self._look()
        return answer

    def _act(self, actions: list[p.Action]) -> None:
        for action in actions:
            self.cluster.coverage.says(action)
            if self.loop.tracing:
                self.loop.note(f"{self.name} {action}")
            match action:
                case p.Connect(seat):
                    group = self.cluster.group(self.seat_term, seat.generation, seat.world_size)
                    assert seat.rank is not None
                    self.at(self.loop.uniform(0.001, 0.1), self._connect, group, seat.rank)
                case p.Discard(generation):
                    group = self.cluster.group(self.seat_term, generation, 0)
                    for rank, each in list(group.seats.items()):
                        if each is self:
                            group.leave(rank)
                case p.CutOff():
                    self.cut = True
                    if self.waiting_in is not None:
                        self.at(self.loop.uniform(0.001, 0.1), self.breaks, self.token)
                case p.SayPrepared(generation):
                    self.cluster.check.acknowledged(self, self.seat_term, generation)
                    self._say("prepared", generation)
                case p.SayRefused(generation, detail):
                    self._say("refused", generation, detail)
                case p.SayFormed(generation, step):
                    self._say("formed", generation, step)
                case p.SayLeft(generation, applied):
                    self._say("left", generation, applied)
                case p.SayEnded(generation, outcome):
                    self._say("ended", generation, self.participant.applied, outcome)
                case p.Finish():
                    self.at(0.05, self.dies, "released")

    def _connect(self, group: Group, rank: int) -> None:
        pending = self.participant.pending
        if pending is not None and pending.generation == group.key[1]:
            group.connect(self, rank)

    def connected(self, generation: Generation) -> None:
        pending = self.participant.pending
        if pending is None or pending.generation != generation or not self.participant._connected:
            self._play("connected", generation)

    def connect_failed(self, generation: Generation, detail: str) -> None:
        part = self.participant
        if part.pending is not None and part.pending.generation == generation and not part._connected:
            group = self.cluster.group(self.seat_term, generation, 0)
            if part.pending.rank is not None:
                group.leave(part.pending.rank)
            self._play("could_not_connect", generation, detail)

    # the main thread

    def waits(self, group: Group) -> None:
        self.token += 1
        self.waiting_in = group

    def _look(self) -> None:
        if self.participant.may_enter and not self.busy:
            self.busy = True
            self.at(self.loop.uniform(0.001, 0.02), self._enter)

    def _enter(self) -> None:
        self.busy = False
        part = self.participant
        if not part.may_enter:
            return
        newcomer = part.applied is None
        assert part.pending is not None
        group = self.cluster.group(self.seat_term, part.pending.generation, 0)
        self.cluster.coverage.participant("enter", part)
        going = part.enter()
        self.group, self.going, self.cut = group, going, False
        rank = part.seat.rank
        assert rank is not None
        if self.loop.tracing:
            self.loop.note(f"{self.name} enters {group.key} as rank {rank}, applied {part.applied}, {going}")
        self.cluster.check.entered(self, group)
        if rank in going.donors and newcomer and part.applied == 0:
            self.state = self.cluster.states.fresh(self.name)
        if rank in going.receivers and newcomer:
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

    def _come_out(self) -> None:
        self.waiting_in = None
        self.token += 1
        self.cut = False
        part = self.participant
        assert self.group is not None
        assert part.seat.rank is not None
        self.group.leave(part.seat.rank)
        self._play("came_out")

    def shared(self, token: int) -> None:
        group, going, part = self.group, self.going, self.participant
        if not self._waited(token):
            if token == self.token and self.waiting_in is not None and group is not None and not group.gone:
                self.at(0.3, self.shared, token)
            return
        assert group is not None
        assert going is not None
        rank = part.seat.rank
        assert rank is not None
        self.cluster.check.donors(group, going)
        step = going.step if going.step is not None else group.snapshot[going.donors[0]][1]
        if rank in going.receivers:
            donor = going.donors[int(self.loop.rng.random() * len(going.donors))]
            self.state, _, rows = group.snapshot[donor]
            self.rows = dict(rows)
        assert step is not None
        self.cluster.check.holds(self, step)
        self._play("holds", step)
        if going.save or going.hold:
            self._save()
        if going.hold:
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
        part, group = self.participant, self.group
        assert group is not None
        assert part.applied is not None
        assert part.seat.rank is not None
        if self.raises:
            self.raises = False
            self._say("error", "an exception")
            self._come_out()
            return
        if self.cut:
            self._come_out()
            return
        flags = part.switch_wanted, self.stop
        self.cluster.check.computes(self, group, part.applied + 1)
        group.arrive(self, part.seat.rank, part.applied + 1, flags)

    def stepped(self, token: int, step: int, switch: bool, stop: bool) -> None:
        group, part = self.group, self.participant
        if not self._waited(token):
            if token == self.token and self.waiting_in is not None and group is not None and not group.gone:
                self.at(0.3, self.stepped, token, step, switch, stop)
            return
        assert group is not None
        assert self.state is not None
        before = self.state
        self.state = self.cluster.states.after(before, step, group.key)
        self.cluster.coverage.participant("applies", part)
        part.applies(Step(step))
        self.rows[step] = {"first": step, "generation": part.seat.generation, "row": {"step": step, "seconds": 0.2, "state": self.state}}
        self.cluster.check.completed(self, group, step)
        if part.seat.rank == 0:
            self._say("row", self.rows[step], stream=True)
        self.cluster.stepped(self, step)
        if step % self.cluster.save_every == 0 and step < self.cluster.total_steps:
            self._save()
        if switch:
            self.cluster.check.switches(self, group)
            self.cut = False
            self._play("switched")
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
        self.cut = False
        self._play("ended", outcome)

    def _save(self) -> None:
        """Take a copy; it is written in the background, and said to every controller until one has decided."""
        part, group = self.participant, self.group
        assert group is not None
        key = (part.applied or 0, int(part.seat.generation))
        if key in self.saves:
            return
        saved = {"step": key[0], "generation": key[1], "rank": part.seat.rank, "world_size": group.size, "state": self.state}
        self.at(self.loop.uniform(0.02, 0.09), self._saved, key, saved)

    def _saved(self, key: tuple[int, int], saved: dict[str, Any]) -> None:
        self.saves[key] = saved
        self._say("saved", saved, stream=True)

    # the checkpoint of the term's base

    def _load(self, step: int, term: int) -> None:
        if self.participant.applied == step:
            self._say("loaded", step)
        if self.participant.inside or self.participant.applied is not None:
            return
        if not self.busy:
            self.busy = True
            self.at(self.loop.uniform(0.05, 0.2), self._loaded, step, term)

    def _loaded(self, step: int, term: int) -> None:
        self.busy = False
        if manifest_key(step, term) in self.cluster.damaged:
            self._say("corrupt", step)
            return
        manifest = self.cluster.plain_run.read(manifest_key(step, term))
        assert manifest is not None, "a checkpoint that was named is not there"
        self.state = int(str(manifest["state"]))
        self.participant.applies(Step(step))
        self._say("loaded", Step(step))
        self._look()
