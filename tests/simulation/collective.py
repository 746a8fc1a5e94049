"""The process group of one generation: formed by all, entered by all, and a step is done only if all came to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.core.types import Generation, JsonObject, Step, WorkerId
from tests.simulation.loop import Loop

if TYPE_CHECKING:
    from tests.simulation.worker import Worker

CONNECT_PATIENCE_S = 2.5


Key = tuple[str, Generation]
"""The controller that proposed a generation, and its number."""


class Group:
    """Whoever left or died is in `gone`."""

    def __init__(self, loop: Loop, key: Key, size: int) -> None:
        self.loop, self.key, self.size = loop, key, size
        self.seats: dict[int, Worker] = {}
        self.gone: set[int] = set()
        self.hangs = False
        """Nothing that it was to do is ever done."""
        self.entered: set[int] = set()
        self.arrived: dict[int, dict[int, tuple[bool, bool]]] = {}
        """By step: the ranks that handed in their part, with their flags (a switch, a stop)."""
        self.snapshot: dict[int, tuple[int | None, Step | None, JsonObject]] = {}
        """What each member held when it entered: state, steps applied, records of steps."""

    def connect(self, worker: Worker, rank: int) -> None:
        """In the background of a worker: it is told `connected` once all ranks came, or gives up."""
        self.seats[rank] = worker
        generation = Generation(self.key[1])
        loop = self.loop
        worker.at(CONNECT_PATIENCE_S, worker.connect_failed, generation, "the others did not come")
        if len(self.seats) < self.size or self.gone:
            return
        for each in self.seats.values():
            if each.isolated or loop.chance(worker.cluster.connect_failure):
                each.at(loop.uniform(0.01, 0.5), each.connect_failed, generation, "refused")
            else:
                each.at(loop.uniform(0.005, 0.1), each.connected, generation)

    def leave(self, rank: int) -> None:
        """A member is out, or dead: some of those that wait for it notice, the others wait until they are told."""
        if rank in self.gone:
            return
        self.gone.add(rank)
        for each in self.seats.values():
            if each.waiting_in is self and self.loop.chance(0.6):
                each.at(self.loop.uniform(0.002, 0.06), each.breaks, each.token)

    def enter(self, worker: Worker, rank: int) -> None:
        """To share the state: once all are there each gets its part, in its own time."""
        self.entered.add(rank)
        self.snapshot[rank] = worker.state, worker.participant.applied, worker.history.to_json()
        worker.waits(self)
        if len(self.entered) == self.size:
            for each in self.seats.values():
                if each.waiting_in is self:
                    each.at(self.loop.uniform(0.01, 0.3), each.shared, each.token)
        self._notice(worker)

    def arrive(self, worker: Worker, rank: int, step: int, flags: tuple[bool, bool]) -> None:
        """To a step's last collective; `step` is the one that it completes."""
        arrived = self.arrived.setdefault(step, {})
        arrived[rank] = flags
        worker.waits(self)
        if len(arrived) == self.size:
            switch, stop = all(each[0] for each in arrived.values()), any(each[1] for each in arrived.values())
            for each in self.seats.values():
                if each.waiting_in is self:
                    each.at(self.loop.uniform(0.005, 0.08), each.stepped, each.token, step, switch, stop)
        self._notice(worker)

    def _notice(self, worker: Worker) -> None:
        if self.gone and self.loop.chance(0.6):
            worker.at(self.loop.uniform(0.002, 0.06), worker.breaks, worker.token)

    def fate(self, worker: Worker) -> str:
        """Of a collective to which all came, for one member: done, broken, later, or never."""
        if self.hangs:
            return "never"
        if self.gone:
            return ("done", "broken", "never")[min(2, int(self.loop.rng.random() * 2.5))]
        if any(each.isolated or (each.frozen and each is not worker) for each in self.seats.values()):
            return "done" if self.loop.chance(0.5) else "later"
        return "done"

    def names(self) -> tuple[WorkerId, ...]:
        return tuple(self.seats[rank].name for rank in sorted(self.seats))
