"""Ray, as controllers see it: places for workers, calls to them, and their end. In place of WorkerGroup."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.core.types import WorkerId
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused, Invitation

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.controller import ControllerProcess
    from tests.simulation.worker import Worker

Answer = Callable[[Attached | AttachRefused | AttachFailed], None]


class Actors:
    """One controller's handles of them."""

    gpu = 0

    def __init__(self, cluster: Cluster, controller: ControllerProcess) -> None:
        self._cluster, self._controller, self._loop = cluster, controller, cluster.loop
        self._known: set[WorkerId] = set()

    def find(self) -> list[WorkerId]:
        found = self._cluster.living_names()
        self._known.update(found)
        return found

    def start(self, count: int, *, joins: bool) -> list[WorkerId]:
        started = [self._cluster.ask_for_worker() for _ in range(count)]
        self._known.update(started)
        return started

    def attach(self, worker: WorkerId, invitation: Invitation, done: Answer) -> None:
        self._loop.at(self._loop.uniform(0.005, 0.1), None, self._call, worker, invitation, done)

    def _call(self, name: WorkerId, invitation: Invitation, done: Answer) -> None:
        """It waits for a place, and for a node that cannot be reached."""
        cluster, loop = self._cluster, self._loop
        worker = cluster.workers.get(name)
        if name in cluster.waiting or (worker is not None and worker.alive and worker.isolated):
            loop.at(0.2, None, self._call, name, invitation, done)
        elif worker is None or not worker.alive:
            self._answer(done, AttachFailed(name, "The actor is dead."))
        else:
            loop.at(0.0, worker, self._attached, worker, invitation, done)

    def _attached(self, worker: Worker, invitation: Invitation, done: Answer) -> None:
        """In the worker's process."""
        if not self._controller.alive:
            return  # nobody listens at this address
        described = worker.attach(invitation.term, self._controller)
        self._answer(done, AttachRefused(worker.name) if described is None else Attached(worker.name, described))

    def _answer(self, done: Answer, answer: Attached | AttachRefused | AttachFailed) -> None:
        self._loop.at(self._loop.uniform(0.002, 0.05), self._controller, done, answer)

    def why_dead(self, worker: WorkerId, done: Callable[[WorkerId, str], None]) -> None:
        alive = worker in self._cluster.workers and self._cluster.workers[worker].alive
        self._loop.at(self._loop.uniform(0.01, 0.1), self._controller, done, worker, "" if alive else "it was killed")

    def end(self, workers: list[WorkerId] | None = None) -> None:
        """None: all."""
        loop, cluster = self._loop, self._cluster
        for name in workers if workers is not None else sorted(self._known):
            cluster.check.kills(self._controller, name)
            self._known.discard(name)
            cluster.waiting.pop(name, None)
            worker = cluster.workers.get(name)
            if worker is not None and worker.alive and cluster.kills(worker):
                loop.at(loop.uniform(0.001, 0.1), None, worker.dies, "it was ended")
