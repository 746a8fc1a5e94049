"""`python -m benchmarks.membership_scale`: what one change of a group of 4,096 simulated workers costs the controller.

Counted: every Coordinator.handle from the new desired size (or the death) to the formed generation, with the answers of all workers; the messages
as JSON (launcher/runtime/protocol/messages.py); and the transport's thread until the last byte is in a real socket, which another process empties.
It is processor time of all threads of the controller's process, which other load on the machine disturbs less than a clock. Not counted: heartbeats,
and the time of the workers and of the network.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import selectors
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Bar, Figure, alone, finish
from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import events as m
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.protocol.orders import messages_of
from launcher.runtime.transport.server import MessageServer

BAR = Bar(0.1, "at_most", "value")
Orders = m.Prepare | m.Commit | m.Withdraw | m.Leave | m.Stop | m.Release


class Wire:
    """The controller's server, with a socket to each worker that a process of its own reads."""

    def __init__(self, workers: list[WorkerId]) -> None:
        pairs = {worker: socket.socketpair() for worker in workers}
        self._drain = multiprocessing.get_context("fork").Process(target=_drain, args=([pair[1] for pair in pairs.values()],), daemon=True)
        self._drain.start()
        self._server = MessageServer(b"", lambda event: None, host="127.0.0.1")
        self._server.start()
        for worker, (ours, theirs) in pairs.items():
            theirs.close()
            self._server._writers[worker] = self._in_loop(asyncio.open_connection(sock=ours))[1]

    def _in_loop(self, awaited: object) -> object:
        return asyncio.run_coroutine_threadsafe(awaited, self._server._loop).result(timeout=60)  # type: ignore[arg-type]

    def carry(self, order: Orders) -> None:
        self._server.send_all(messages_of(order))
        self._in_loop(asyncio.sleep(0))

    def close(self) -> None:
        self._drain.kill()
        self._drain.join()
        self._server.stop()


def _drain(sockets: list[socket.socket]) -> None:
    selector = selectors.EpollSelector()
    for each in sockets:
        selector.register(each, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            key.fileobj.recv(1 << 16)  # type: ignore[union-attr]


class Group:
    """A controller's decisions with workers that answer all orders at once; `seconds` is the controller's part of it."""

    def __init__(self, workers: list[WorkerId], wire: Wire) -> None:
        self.coordinator = Coordinator(minimum=1, load=False)
        self._wire = wire
        self.seconds = 0.0
        self.step = Step(0)
        for worker in workers:
            self.coordinator.handle(m.Started(worker))
            self.coordinator.handle(m.Ready(worker))

    def handle(self, *events: m.Event) -> None:
        """These, what the workers answer to it, and so on until nothing follows."""
        heard = list(events)
        while heard:
            began = time.process_time()
            actions = [action for event in heard for action in self.coordinator.handle(event)]
            for action in actions:
                if isinstance(action, Orders):
                    self._wire.carry(action)
            self.seconds += time.process_time() - began
            heard = [event for action in actions for event in self._answers(action)]

    def _answers(self, action: m.Action) -> list[m.Event]:
        match action:
            case m.Prepare(formation, _, to, leave):
                before = Generation(formation.generation - 1)
                left: list[m.Event] = [m.Left(worker, before, self.step) for worker in to if leave]
                return [*left, *(m.Prepared(worker, formation.generation) for worker in to)]
            case m.Commit(formation, leaving, step=step):
                formed: list[m.Event] = [
                    m.Formed(worker, formation.generation, step if step is not None else self.step) for worker in formation.ranks
                ]
                return [*(m.Left(worker, Generation(formation.generation - 1), self.step) for worker in leaving), *formed]
            case m.Leave(generation, to):
                return [m.Left(worker, generation, self.step) for worker in to]
        return []


def measure(workers: list[WorkerId], wire: Wire, change: Callable[[Group], None], first: int) -> float:
    group = Group(workers, wire)
    group.handle(m.ChangeWanted(join=tuple(workers[:first])))
    assert len(group.coordinator.group.ranks) == first
    group.seconds = 0.0
    gc.collect()
    change(group)
    assert group.coordinator.group.settled
    assert len(group.coordinator.group.ranks) != first
    return group.seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.membership_scale", description=__doc__)
    parser.add_argument("--workers", type=int, default=4096)
    parser.add_argument("--count", type=int, default=12, help="measurements of each change")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    size = options.workers
    workers = [WorkerId(f"w{index}") for index in range(size + 1)]
    wire = Wire(workers)
    changes: dict[str, tuple[int, Callable[[Group], None]]] = {
        "grow by one": (size, lambda group: group.handle(m.ChangeWanted(join=(workers[size],)))),
        "one lost": (size, lambda group: group.handle(m.Gone(workers[size // 2], "it died"))),
        "shrink by one": (size, lambda group: group.handle(m.ChangeWanted(leave=(workers[size - 1],)))),
    }
    figures: list[Figure] = []
    try:
        for name, (first, change) in changes.items():
            measure(workers, wire, change, first)
            found = [measure(workers, wire, change, first) for _ in range(options.count)]
            figures.append(alone(f"{name}, {size} workers, controller time", "s", found, BAR, more_is_better=False))
    finally:
        wire.close()
    return finish(figures, {"workers": size, "count": options.count}, options.output)


if __name__ == "__main__":
    sys.exit(main())
