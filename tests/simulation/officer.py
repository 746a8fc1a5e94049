"""How a simulated controller takes office, and begins a new term: the order of claiming, looking, asking and basing is the real one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import ManualClock
from launcher.core.errors import StoreUnavailable
from launcher.core.types import Generation, RunId, Step, Term, WorkerId
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.records import inheritance as office
from launcher.runtime.records.event_log import EventLog
from tests.simulation.loop import Died, Process
from tests.simulation.network import Connection, Message
from tests.simulation.saving import Rows, Saver, Writer
from tests.simulation.store import View

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

ATTACH_S = 1.5
TICK_S = 0.5
LEDGER_S = 3.0


class Officer(Process):
    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster.loop)
        self.cluster, self.name = cluster, name
        self.run = RunStore(View(cluster.store, self, cluster), RunId("r"))
        self.writer = Writer(self)
        self.writer_run = RunStore(View(cluster.store, self.writer, cluster), RunId("r"))
        self.term = Term(0)
        self.serving = False
        self.ending: m.End | None = None
        self.links: dict[WorkerId, Connection] = {}
        self.evicted: set[WorkerId] = set()
        self.released: set[WorkerId] = set()
        self.draining: set[WorkerId] = set()
        self.touched: set[WorkerId] = set()
        """Called into a generation, so that what they built is no longer as it was built."""
        self.heard_at: dict[WorkerId, float] = {}
        self.found: dict[WorkerId, tuple[m.Found, tuple[tuple[int, int], ...]]] = {}
        self.asked: set[WorkerId] = set()
        self.early: list[tuple[Connection, Message]] = []
        """Heard before it was in office."""
        self.whole: list[tuple[int, int]] = []
        """Checkpoints with all parts, until the rows of their steps are there."""
        self.acts_left: int | None = None
        self.checkpoint: CheckpointInfo | None = None
        """That of the term's base, to be loaded."""
        self.membership = Coordinator(minimum=1, load=False)
        self.at(cluster.loop.uniform(0.05, 0.3), self._take_office)

    # the process

    def dies(self, why: str) -> None:
        if not self.alive:
            return
        if self.loop.tracing:
            self.loop.note(f"{self.name} (term {self.term}) dies: {why}")
        self.alive = self.writer.alive = False
        for link in list(self.links.values()):
            link.breaks()
        self.cluster.controller_died(self)

    def freeze(self) -> None:
        super().freeze()
        self.writer.freeze()

    def wake(self) -> None:
        self.writer.wake()
        super().wake()

    def post(self, call: Any, *arguments: Any) -> None:
        self.at(0.001, call, *arguments)

    def fence(self) -> None:
        """It sees a higher term: it ends itself and acts no more."""
        self.dies("a higher term was claimed")
        raise Died

    def _check_office(self) -> None:
        """Before anything that others would feel at once: is this controller still in office?"""
        try:
            if self.run.highest_term() > self.term:
                self.fence()
        except StoreUnavailable:
            pass

    # taking office

    def _take_office(self) -> None:
        try:
            if office.inherit(self.run).ended(self.cluster.desired):
                self.cluster.check.found_ended()
                self.dies("the run has ended")
                return
            self.term, self.left = office.claim_and_look(self.run, self.name, "")
            self.cluster.check.claimed(self.term)
        except StoreUnavailable:
            self.dies("the store does not answer")
            return
        if self.left.ended(self.cluster.desired):
            self.cluster.check.found_ended()
            self.dies("the run has ended")
            return
        if self.loop.tracing:
            self.loop.note(f"{self.name} claims term {self.term}; the ledger goes to {self.left.recorded}")
        for worker in self.cluster.living():
            self.asked.add(worker.name)
            self._attach(worker)
        self.at(ATTACH_S, self._decide_base) if self.asked else self._decide_base()

    def _attach(self, worker: Any) -> None:
        link = Connection(self.loop, self.cluster, self, worker, self.term)
        self.links[worker.name] = link
        self.heard_at[worker.name] = self.loop.now
        if not worker.isolated:
            self.loop.at(self.loop.uniform(0.005, 0.1), worker, worker.attach, link)

    def _decide_base(self) -> None:
        left = self.left
        newest = next(iter(left.checkpoints), None)
        least = max(left.recorded, newest.step if newest else 0)
        for worker in sorted(self.asked - self.found.keys()):
            self._close(worker, "it did not answer a new controller")
        kept = office.adoptable(left, [found for found, _ in self.found.values()])
        names = [found.worker for found in kept]
        number = max([left.generation, *(max(found.seen, found.generation) for found, _ in self.found.values())])
        for worker in list(self.found):
            if worker not in names:
                del self.found[worker]
                self._close(worker, "it was given up before, or is not of the newest term")
        if not any(found.applied is not None and found.generation and found.applied >= least for found in kept):
            for worker in self.found:
                self._close(worker, "nobody holds what the store has")
            self._begin(office.base_on_checkpoint(left, newest), newest, number)
            return
        self._base(office.base_on_workers(left, names), newest)
        self.membership = Coordinator(
            minimum=self.cluster.minimum, load=False, checkpoint=newest.step if newest else None, recorded=left.recorded, generation=number
        )
        for _, saves in self.found.values():
            for save in saves:
                if self.saver.begins(save):
                    self._handle(m.SaveStarted(Step(save[0]), Generation(save[1])))
        self._act(self.membership.adopt(found for found, _ in self.found.values()))
        self._ask_for_rows()
        self._serve()

    def _base(self, base: TermBase, newest: CheckpointInfo | None) -> None:
        try:
            created = self.run.create_base(self.term, base)
        except StoreUnavailable:
            if self.cluster.plain_run.read(f"terms/{self.term:012d}-base.json"):
                self.cluster.check.based(self, base)
            self.dies("the store does not answer")
            raise Died from None
        if not created:
            self.dies("its term has another base")
            raise Died
        if self.loop.tracing:
            self.loop.note(f"{self.name} term {self.term} builds on {base}")
        self.cluster.check.based(self, base)
        self.start = base.start
        self.recorder = EventLog(self.writer_run, self.term, self.writer, ManualClock())  # type: ignore[arg-type]
        saved = {info.step for info in self.left.checkpoints if info.step <= base.start or base.adopted_step is not None}
        self.saver = Saver(self, self.writer_run, self.term, base.start, saved)
        self.rows = Rows(base.start, base.start, deque())

    def _begin(self, base: TermBase, newest: CheckpointInfo | None, number: Generation) -> None:
        """From a checkpoint, or from nothing: with new workers."""
        self._base(base, newest)
        self.membership = Coordinator(
            minimum=self.cluster.minimum, load=newest is not None, checkpoint=newest.step if newest else None, generation=number
        )
        self.checkpoint = newest
        self._serve()

    def _serve(self) -> None:
        self.warm_since = self.loop.now
        self.leaving_since = self.loop.now
        self.prepared_at: tuple[Generation, float] = (m.NONE, 0.0)
        self.moved: tuple[object, float] = ((), self.loop.now)
        self.orders_due = self.watch_due = 0.0
        self.ledger_due = self.loop.now + LEDGER_S
        self.alone_due = 0.0
        self.whole.clear()
        if not self.serving:
            self.serving = True
            self.at(TICK_S, self._tick)
            early, self.early = self.early, []
            for link, message in early:
                self.heard(link, message)

    def _start_again(self, usable: Callable[[CheckpointInfo], bool]) -> None:
        """Nobody holds the state: a new term with the newest checkpoint; workers that held one before begin afresh."""
        try:
            self.term, left = office.claim_and_look(self.run, self.name, "")
            self.left = replace(left, checkpoints=tuple(info for info in left.checkpoints if usable(info)))
        except StoreUnavailable:
            self.dies("the store does not answer")
            raise Died from None
        self.cluster.check.claimed(self.term)
        newest = next(iter(self.left.checkpoints), None)
        peers = self.membership.peers
        spares = [worker for worker, peer in peers.items() if peer.applied is None and (newest is not None or worker not in self.touched)]
        for worker in peers:
            if worker not in spares:
                self._close(worker, "it begins afresh")
        number = self.membership.number
        known = {worker: self.membership.peers[worker].ready for worker in spares}
        self._begin(office.base_on_checkpoint(self.left, newest, spares), newest, number)
        for worker, ready in known.items():
            self._attach(self.cluster.workers[worker])
            self._handle(m.Started(worker))
            if ready:
                self._handle(m.Ready(worker))
        raise Died  # nothing of what was to be done before holds any more

    # what the controller in office does

    def heard(self, link: Connection, message: Message) -> None:
        raise NotImplementedError

    def _handle(self, event: m.Event) -> None:
        raise NotImplementedError

    def _act(self, actions: list[m.Action]) -> None:
        raise NotImplementedError

    def _close(self, worker: WorkerId, reason: str) -> None:
        raise NotImplementedError

    def _ask_for_rows(self) -> None:
        raise NotImplementedError

    def _tick(self) -> None:
        raise NotImplementedError
