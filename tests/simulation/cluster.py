"""The simulated cluster of one schedule: workers, controllers, the run store, and what people want."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from launcher.core.types import RunId, Step, WorkerId
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus
from launcher.runtime.protocol import coordinator as m
from tests.simulation.collective import Group
from tests.simulation.controller import Controller
from tests.simulation.coverage import Coverage
from tests.simulation.invariants import Checker, States
from tests.simulation.loop import Loop
from tests.simulation.worker import Worker
from tests.support.stores import MemoryStore

BOUNDS = WorkerBounds(min=1, max=5, target=3)
DESIRED = Desired(revision=1, state="running", spec=1, workers=BOUNDS, by="", at="")
STATUS = RunStatus(run_id="r", name="r", state=JobState.RUNNING, workers=BOUNDS)


class Cluster:
    def __init__(self, loop: Loop, *, target: int, minimum: int, total_steps: int, save_every: int) -> None:
        self.loop = loop
        self.target, self.minimum, self.total_steps, self.save_every = target, minimum, total_steps, save_every
        self.capacity = 7
        self.stop_wanted = False
        self.desired = DESIRED
        self.loss = self.store_failure = self.store_pause = self.connect_failure = 0.0
        self.store = MemoryStore()
        self.plain_run = RunStore(self.store, RunId("r"))
        self.damaged: set[str] = set()
        """Keys of manifests whose checkpoint is not whole any more."""
        self.states = States()
        self.coverage = Coverage()
        self.workers: dict[WorkerId, Worker] = {}
        self.controllers: list[Controller] = []
        self.groups: dict[tuple[int, int], Group] = {}
        self.check = Checker(self)
        self.progress = 0
        self.end: JobState | None = None
        self.watchers: list[Callable[[], None]] = []
        """Called when a step is done; with `on_order`, how faults find their moment."""
        self.slowness: Callable[[], float] = lambda: 1.0
        """How much longer than usual a step takes."""
        self.on_order: Callable[[m.Action], None] = lambda order: None

    # processes

    def start_controller(self) -> None:
        if self.end is None:
            self.controllers.append(Controller(self, f"c{len(self.controllers)}"))

    def controller_died(self, controller: Controller) -> None:
        if self.end is None:
            self.loop.at(self.loop.uniform(0.2, 1.0), None, self._keep_one)

    def _keep_one(self) -> None:
        if not any(controller.alive for controller in self.controllers):
            self.start_controller()

    def start_worker(self) -> Worker | None:
        if len(self.living()) >= self.capacity:
            return None
        name = WorkerId(f"w{len(self.workers)}")
        worker = self.workers[name] = Worker(self, name)
        return worker

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def kills(self, worker: Worker) -> bool:
        """Whether an order to kill reaches the process; a node that cannot be reached keeps its own."""
        return not worker.isolated and (not worker.frozen or self.loop.chance(0.5))

    def worker_died(self, worker: Worker) -> None:
        """Nothing to keep: it stays in `workers` for the record."""

    def group(self, term: int, generation: int, size: int) -> Group:
        key = (term, generation)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(self.loop, key, size)
        return group

    # what happens

    def stepped(self, worker: Worker, step: int) -> None:
        if worker.participant.seat.rank == 0:
            self.progress += 1
        for watch in self.watchers:
            watch()

    def status(self, term: int, state: JobState, step: Step) -> RunStatus:
        return replace(STATUS, state=state, term=term, step=step)

    def has_ended(self, end: JobState) -> None:
        self.end = end
        self.loop.at(2.0, None, self._over)

    def _over(self) -> None:
        if self.check.final is None:  # a term in between took it back
            self.end = None
            self._keep_one()
            return
        self.loop.done = True


def dump(store: MemoryStore) -> list[str]:
    """For the story of a schedule: what is in the store at its end."""
    return [f"{key}  {_read(data) if key.endswith('.json') else data.decode()}" for key, data in sorted(store.objects.items())]


def _read(document: bytes) -> str:
    facts = json.loads(document)
    facts.pop("nonce", None)  # the one thing that is not drawn from the seed
    return json.dumps(facts)
