"""A controller's process: what launcher.runtime.controller does, over a simulated link, store, clock and Ray. It decides nothing itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from launcher.core.errors import StoreUnavailable
from launcher.core.types import RunId, Term, WorkerId
from launcher.runtime.cluster.worker_group import WorkerGroup
from launcher.runtime.controller.assembly import assemble
from launcher.runtime.controller.inbox import Inbox, Item, LedgerDurable
from launcher.runtime.controller.leadership import Leadership, LeadershipLost
from launcher.runtime.controller.store_watcher import StoreWatcher
from launcher.runtime.controller.takeover import claim_leadership
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.protocol import messages as m
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.records.store_writer import StoreWriter
from launcher.runtime.transport.server import Disconnected, MessageServer, Received
from tests.simulation.actors import Actors
from tests.simulation.loop import Died, Loop, Process
from tests.simulation.network import Server
from tests.simulation.observed import ObservedRecorder, ObservedRun, observe
from tests.simulation.store import View

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

TIMING = Timing(tick_s=0.5, repeat_s=1.0, policy_s=1.0, ledger_s=3.0, prepare_s=4.0, attach_s=1.5, settle_s=2.0, taken_over_s=5.0)
WATCH_S = 1.5
"""Between two looks of the StoreWatcher."""
BEGUN_AT = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._now = 0.0, BEGUN_AT

    def now(self) -> datetime:
        if self._now[0] != self._loop.now:
            self._now = self._loop.now, BEGUN_AT + timedelta(seconds=self._loop.now)
        return self._now[1]

    def monotonic(self) -> float:
        return self._loop.now

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class Writer(Process):
    """In place of StoreWriter: the thread that writes, in order; StoreUnavailable repeats."""

    failed = False

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self._work: deque[Callable[[], object]] = deque()
        self._busy = False

    def submit(self, write: Callable[[], object]) -> None:
        self._work.append(write)
        if not self._busy:
            self._busy = True
            self.at(0.005, self._serve)

    def _serve(self) -> None:
        try:
            self._work[0]()
        except StoreUnavailable:
            self.at(0.2, self._serve)
            return
        self._work.popleft()
        if self._work:
            self.at(0.005, self._serve)
        else:
            self._busy = False


class Watch(Process):
    """In place of the thread on which StoreWatcher looks."""

    def __init__(self, loop: Loop, look: Callable[[], None]) -> None:
        super().__init__(loop)
        self._look = look
        self.at(WATCH_S, self._serve)

    def _serve(self) -> None:
        self.at(WATCH_S, self._serve)
        self._look()


class SimulatedInbox:
    """In place of Inbox: an item is an event of the controller's process, which handles its events in turn."""

    def __init__(self, controller: ControllerProcess) -> None:
        self._controller = controller

    def put(self, item: Item) -> None:
        self._controller.at(0.001, self._controller.handle, item)

    def get(self, timeout_s: float) -> Item | None:
        return None


class NoOutput:
    """In place of WorkerOutput."""

    def follow(self, worker: WorkerId, described: m.WorkerDescription, *, from_end: bool) -> None: ...


class ControllerProcess(Process):
    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster.loop)
        self.cluster, self.name = cluster, name
        self.server = Server(self)
        self.inbox = SimulatedInbox(self)
        self.threads: list[Process] = []
        self.acts_left: int | None = None
        """So much it still does before it dies."""
        self.leads = False
        """It has said what its term builds on."""
        self.leadership: Leadership | None = None
        self.at(cluster.loop.uniform(0.05, 0.3), self._lead)

    @property
    def term(self) -> Term:
        return self.leadership.term if self.leadership is not None else Term(0)

    # the process

    def dies(self, why: str) -> None:
        if not self.alive:
            return
        if self.loop.tracing:
            self.loop.note(f"{self.name} (term {self.term}) dies: {why}")
        self.alive = False
        for thread in self.threads:
            thread.alive = False
        self.server.close()
        self.cluster.controller_died(self)

    def freeze(self) -> None:
        super().freeze()
        for thread in self.threads:
            thread.freeze()

    def wake(self) -> None:
        for thread in self.threads:
            thread.wake()
        super().wake()

    def may_die(self) -> None:
        if self.acts_left is not None:
            self.acts_left -= 1
            if self.acts_left < 0:
                self.dies("killed between two actions")
                raise Died

    # its life

    def _lead(self) -> None:
        cluster, clock = self.cluster, VirtualClock(self.loop)
        run = ObservedRun(View(cluster.store, self.loop, cluster), RunId("r"), self)
        try:
            desired = run.desired()
            assert desired is not None
            leadership = claim_leadership(run, desired, self.name, clock)
        except StoreUnavailable:
            self.dies("the store does not answer")
            return
        if leadership is None:
            cluster.check.found_ended()
            self.dies("the run has ended")
            return
        self.leadership, left, term, spec = leadership, leadership.inherited, leadership.term, cluster.spec
        if self.loop.tracing:
            self.loop.note(f"{self.name} claims term {term}; the ledger goes to {left.recorded}")
        writer = Writer(self.loop)
        writer_as = cast(StoreWriter, writer)
        inbox = cast(Inbox, self.inbox)
        recorder = ObservedRecorder(
            self, run, spec, writer_as, clock, term, left, state_folder=Path(), durable=lambda *of: inbox.put(LedgerDurable(*of))
        )
        status = StatusWriter(run, clock, spec, writer_as, left, lambda status: None)
        self.workers = Actors(cluster, self)
        self.threads = [writer, Watch(self.loop, StoreWatcher(run, leadership, inbox).look)]
        self.writer = writer
        self.controller, committer = assemble(
            run,
            spec,
            leadership,
            inbox=inbox,
            writer=writer_as,
            recorder=recorder,
            status=status,
            workers=cast(WorkerGroup, self.workers),
            server=cast(MessageServer, self.server),
            contact=("", 0, ""),
            output=cast(WorkerOutput, NoOutput()),
            pods=None,
            clock=clock,
            timing=TIMING,
            holder=self.name,
        )
        observe(self, self.controller, committer)
        self._do(self.controller.begin, self.workers.find())
        self.at(TIMING.tick_s, self._tick)

    def _do(self, call: Callable[..., None], *arguments: Any) -> None:
        leadership = self.leadership
        assert leadership is not None
        if not leadership.active:
            return
        try:
            call(*arguments)
        except LeadershipLost:
            leadership.lost = True
        except StoreUnavailable:
            self.dies("the store does not answer")
            raise Died from None
        if leadership.lost:
            self.dies("a higher term was claimed")
            raise Died
        if leadership.end is not None:
            self.workers.end()
            self.controller.write_end()
            self.writer.submit(lambda: self.at(0.001, self.dies, "the run has ended"))

    def _tick(self) -> None:
        self.at(TIMING.tick_s, self._tick)
        self._do(self.controller.tick)

    def handle(self, item: Item) -> None:
        self._do(self.controller.handle, item)

    # from the link

    def hears(self, worker: WorkerId, message: m.ToController) -> None:
        self.handle(Received(worker, message))

    def lost_connection(self, worker: WorkerId) -> None:
        if self.leadership is not None:
            self.handle(Disconnected(worker))
