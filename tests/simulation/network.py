"""Connections between a controller and its workers: single messages are late, doubled, overtaken or lost; connections break.

What nobody would say again (rows of steps, parts of checkpoints, what is durable) keeps its order and is not lost while the
connection lives, and nothing sent after it overtakes it. The real transport does so with everything: here the protocol has to do
with less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launcher.core.types import Term, WorkerId
from launcher.runtime.protocol import messages as m
from tests.simulation.loop import Loop, Process

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.controller import ControllerProcess
    from tests.simulation.worker import Worker

LASTING = frozenset(
    {
        *(m.SendRecords, m.Durable, m.CheckpointDecided, m.TermBegan, m.Evicted),
        *(m.Hello, m.Ready, m.Row, m.Evaluated, m.Saved, m.SaveFailed, m.Error, m.Draining, m.Released),
    }
)
"""Messages that are said once."""


class Connection:
    """`term` is that of the controller, as the worker knows it."""

    def __init__(self, cluster: Cluster, controller: ControllerProcess, worker: Worker, term: Term) -> None:
        self.loop: Loop = cluster.loop
        self.cluster, self.controller, self.worker, self.term = cluster, controller, worker, term
        self.open = True
        self._stream_at = [0.0, 0.0]

    def to_worker(self, message: m.ToWorker) -> None:
        if self.cluster.encoded:
            message = m.decode_to_worker(m.encode(message))
        self._send(0, self.worker, self.worker.received, message)

    def to_controller(self, message: m.ToController) -> None:
        if self.cluster.encoded:
            message = m.decode_to_controller(m.encode(message))
        self._send(1, self.controller, self.controller.server.received, message)

    def _send(self, way: int, to: Process, hear: Callable[..., None], message: Any) -> None:
        if not self.open:
            return
        loop, rng, loss = self.loop, self.loop.rng, self.cluster.loss
        isolated = self.worker.isolated
        if type(message) in LASTING:
            delay = 0.002 + 0.03 * rng.random() + (0.5 if isolated else 0.0)
            due = self._stream_at[way] = max(self._stream_at[way], loop.now + delay)
            if isolated:
                loop.at(due - loop.now, to, self._arrive_in_order, way, to, hear, message)
            else:
                loop.at(due - loop.now, to, hear, self, message)
            return
        if isolated or (loss and rng.random() < loss):
            return
        for _ in range(2 if loss and rng.random() < loss else 1):
            delay = 0.002 + 0.03 * rng.random()
            if loss and rng.random() < loss:
                delay += 1.5 * rng.random()
            behind = self._stream_at[way] - loop.now
            loop.at(delay if delay > behind else behind, to, hear, self, message)

    def _arrive_in_order(self, way: int, to: Process, hear: Callable[..., None], message: Any) -> None:
        """What could not get through is sent again."""
        if self.worker.isolated:
            self._stream_at[way] = max(self._stream_at[way], self.loop.now + 0.5)
            self.loop.at(0.5, to, self._arrive_in_order, way, to, hear, message)
        else:
            hear(self, message)

    def breaks(self) -> None:
        """Both sides see it, each in its own time; a side that cannot be reached does not."""
        if not self.open:
            return
        self.open = False
        loop = self.loop
        loop.at(loop.uniform(0.001, 0.1), self.controller, self.controller.server.lost, self)
        if not self.worker.isolated:
            loop.at(loop.uniform(0.001, 0.1), self.worker, self.worker.lost_connection, self)


class Server:
    """In place of MessageServer."""

    def __init__(self, controller: ControllerProcess) -> None:
        self._controller = controller
        self._links: dict[WorkerId, Connection] = {}
        self.evicted: set[WorkerId] = set()

    def send(self, worker: WorkerId, message: m.ToWorker) -> None:
        self.send_all([(worker, message)])

    def send_all(self, messages: Any) -> None:
        for worker, message in messages:
            self._controller.may_die()
            link = self._links.get(worker)
            if link is not None:
                link.to_worker(message)

    def drop(self, worker: WorkerId) -> None:
        self.evicted.add(worker)
        link = self._links.pop(worker, None)
        if link is not None:
            link.breaks()

    # from the connections

    def received(self, link: Connection, message: m.ToController) -> None:
        worker = link.worker.name
        if isinstance(message, m.Hello):
            self._take_in(link)
        elif self._links.get(worker) is link:
            self._controller.hears(worker, message)

    def _take_in(self, link: Connection) -> None:
        worker = link.worker.name
        if worker in self.evicted:
            link.to_worker(m.Evicted())
            link.breaks()
            return
        replaced = self._links.get(worker)
        self._links[worker] = link
        if replaced is not None:
            replaced.breaks()

    def lost(self, link: Connection) -> None:
        worker = link.worker.name
        if self._links.get(worker) is link:
            del self._links[worker]
            self.evicted.add(worker)
            self._controller.lost_connection(worker)

    def close(self) -> None:
        """The process is gone."""
        for link in self._links.values():
            link.breaks()
