"""Connections between a controller and its workers: single messages are late, doubled, overtaken or lost; connections break.

What a process sends as a stream (rows of steps, parts of checkpoints, what is durable) keeps its order and is not lost
while the connection lives, and nothing sent after it overtakes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.loop import Loop, Process
from tests.simulation.store import Weather

if TYPE_CHECKING:
    from tests.simulation.controller import Controller
    from tests.simulation.worker import Worker

Message = tuple[Any, ...]


class Connection:
    def __init__(self, loop: Loop, weather: Weather, controller: Controller, worker: Worker, term: int) -> None:
        self.loop, self.weather = loop, weather
        self.controller, self.worker, self.term = controller, worker, term
        self.open = True
        self._stream_at = [0.0, 0.0]

    def to_worker(self, message: Message, *, stream: bool = False) -> None:
        self._send(0, self.worker, self.worker.heard, message, stream)

    def to_controller(self, message: Message, *, stream: bool = False) -> None:
        self._send(1, self.controller, self.controller.heard, message, stream)

    def _send(self, way: int, to: Process, hear: Any, message: Message, stream: bool) -> None:
        if not self.open:
            return
        loop, rng, loss = self.loop, self.loop.rng, self.weather.loss
        isolated = self.worker.isolated
        if stream:
            delay = 0.002 + 0.03 * rng.random() + (0.5 if isolated else 0.0)
            due = self._stream_at[way] = max(self._stream_at[way], loop.now + delay)
            loop.at(
                due - loop.now,
                to,
                self._arrive_in_order if isolated else hear,
                *((way, to, hear, message) if isolated else (self, message)),
            )
            return
        if isolated or (loss and rng.random() < loss):
            return
        for _ in range(2 if loss and rng.random() < loss else 1):
            delay = 0.002 + 0.03 * rng.random()
            if loss and rng.random() < loss:
                delay += 1.5 * rng.random()
            loop.at(max(delay, self._stream_at[way] - loop.now), to, hear, self, message)

    def _arrive_in_order(self, way: int, to: Process, hear: Any, message: Message) -> None:
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
        loop.at(loop.uniform(0.001, 0.1), self.controller, self.controller.lost_connection, self)
        if not self.worker.isolated:
            loop.at(loop.uniform(0.001, 0.1), self.worker, self.worker.lost_connection, self)
