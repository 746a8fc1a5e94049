"""The simulated cluster of one schedule: workers, controllers, the run store, and what people want."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from launcher.config.schema import ElasticConfig
from launcher.core.types import Generation, RunId, WorkerId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.protocol import events as e
from tests.simulation.collective import Group, Key
from tests.simulation.controller import ControllerProcess
from tests.simulation.coverage import Coverage
from tests.simulation.invariants import Checker, States
from tests.simulation.loop import Loop
from tests.simulation.store import SimulatedStore
from tests.simulation.worker import Worker
from tests.support.fakes import job_config
from tests.support.stores import MemoryStore

MOST = 5
BATCH = 60


@cache
def job_spec() -> JobSpec:
    """Its policies are quick: what takes seconds here takes minutes in a real run."""
    config = job_config("/runs", trainer__global_batch_size=BATCH, trainer__micro_batch_size=1, trainer__log_every_steps=1)
    elastic = ElasticConfig(silence_s=2.5, hang_s=5.0, cooldown_s=0.0, capacity_timeout_s=1e6)
    config = replace(config, elastic=elastic, checkpoint=replace(config.checkpoint, keep=1000))
    return JobSpec(
        run_id=RunId("r"), name="r", config=config, code=CodeRef(digest=""), versions={}, submitted_at="2026-01-01T00:00:00.000Z"
    )


class Cluster:
    def __init__(self, loop: Loop, *, target: int, minimum: int, total_steps: int, save_every: int, encoded: bool) -> None:
        """`encoded`: messages are written and read, as between real processes; else they are passed as they are."""
        self.loop = loop
        self.spec = job_spec()
        self.target, self.minimum, self.total_steps, self.save_every = target, minimum, total_steps, save_every
        self.encoded = encoded
        self.capacity = 7
        self.stop_wanted = False
        self.loss = self.store_failure = self.store_pause = self.connect_failure = 0.0
        self.store = SimulatedStore()
        self.plain_run = RunStore(self.store, RunId("r"))
        self.damaged: set[str] = set()
        """Keys of manifests whose checkpoint is not whole any more."""
        self.states = States()
        self.coverage = Coverage()
        self.workers: dict[WorkerId, Worker] = {}
        self.waiting: dict[WorkerId, None] = {}
        """Workers for which there is no place yet, in the order in which they were asked for."""
        self.controllers: list[ControllerProcess] = []
        self.groups: dict[Key, Group] = {}
        self.check = Checker(self)
        self.progress = 0
        self.end: JobState | None = None
        self.policy_failures: set[str] = set()
        """Reasons for which the failure policy has let the run fail."""
        self.watchers: list[Callable[[], None]] = []
        """Called when a step is done; with `on_order`, how faults find their moment."""
        self.slowness: Callable[[], float] = lambda: 1.0
        """How much longer than usual a step takes."""
        self.on_order: Callable[[e.Action], None] = lambda order: None
        self._asked_for = 0
        self._revision = 0
        self.want()

    # people

    def want(self, *, stop: bool = False) -> None:
        """As `launch resize` and `launch stop` do."""
        self._revision += 1
        self.stop_wanted = self.stop_wanted or stop
        self.plain_run.create_desired(
            Desired(
                revision=self._revision,
                state="stopped" if self.stop_wanted else "running",
                spec=1,
                workers=WorkerBounds(min=self.minimum, max=MOST, target=self.target),
                by="",
                at="",
            )
        )

    # processes

    def start_controller(self) -> None:
        if self.end is None:
            self.controllers.append(ControllerProcess(self, f"c{len(self.controllers)}"))

    def controller_died(self, controller: ControllerProcess) -> None:
        if self.end is None:
            self.loop.at(self.loop.uniform(0.2, 1.0), None, self._keep_one)

    def _keep_one(self) -> None:
        if not any(controller.alive for controller in self.controllers):
            self.start_controller()

    def ask_for_worker(self) -> WorkerId:
        name = WorkerId(f"w{self._asked_for:02}")
        self._asked_for += 1
        self.waiting[name] = None
        self.place()
        return name

    def place(self) -> None:
        """Those that wait, as far as there is room."""
        while self.waiting and len(self.living()) < self.capacity:
            name = next(iter(self.waiting))
            del self.waiting[name]
            self.workers[name] = Worker(self, name)

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def living_names(self) -> list[WorkerId]:
        """Also those that wait for a place."""
        return sorted([*(worker.name for worker in self.living()), *self.waiting])

    def kills(self, worker: Worker) -> bool:
        """Whether an order to kill reaches the process; a node that cannot be reached keeps its own."""
        return not worker.isolated and (not worker.frozen or self.loop.chance(0.5))

    def worker_died(self) -> None:
        """It stays in `workers` for the record."""
        self.loop.at(0.05, None, self.place)

    def group(self, controller: str, generation: Generation, size: int) -> Group:
        """A controller's generations have numbers of their own, whatever its term."""
        key = (controller, generation)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(self.loop, key, size)
        return group

    # what happens

    def stepped(self, worker: Worker) -> None:
        if worker.participant.assignment.rank == 0:
            self.progress += 1
        for watch in self.watchers:
            watch()

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
    facts: Mapping[str, Any] = json.loads(document)
    return json.dumps({name: value for name, value in facts.items() if name != "nonce"})  # the one thing that is not drawn from the seed
