"""Virtual time: events in the order of their times, and processes that die, freeze, wake up and wait for the store."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any


class Died(BaseException):
    """The process ended here, in the middle of what it did."""


class Loop:
    """`note` keeps the story of a schedule where one is wanted; `tracing` saves the work of wording it."""

    def __init__(self, seed: int, draw: int = 0, *, tracing: bool = False) -> None:
        self.rng = random.Random(f"{seed}/{draw}" if draw else seed)
        self.now = 0.0
        self.done = False
        self.tracing = tracing
        self.story: list[str] = []
        self.current: Process | None = None
        """Whose event is being handled."""
        self._heap: list[tuple[float, int, Process | None, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, delay: float, process: Process | None, call: Callable[..., Any], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, process, call, arguments))

    def note(self, text: str) -> None:
        self.story.append(f"{self.now:8.3f}  {text}")

    def run(self, until: float) -> None:
        """Also called inside an event: a process that waits for the store lets the others go on meanwhile."""
        heap = self._heap
        while heap and not self.done:
            if heap[0][0] > until:
                break
            moment, _, process, call, arguments = heapq.heappop(heap)
            if moment > self.now:
                self.now = moment
            if process is None:
                call(*arguments)
            elif not process.alive:
                continue
            elif process.paused:
                process.backlog.append((call, arguments))
            else:
                before, self.current = self.current, process
                try:
                    call(*arguments)
                except Died:
                    pass
                finally:
                    self.current = before
        self.now = max(self.now, until) if not self.done else self.now

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


class Process:
    """Whatever runs on its own: it handles its events in turn, none while it is frozen, none once it is dead.

    A thread beside the main one is a process as well, which freezes, wakes and dies with the one that it belongs to.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.alive = True
        self.frozen = False
        self.blocked = 0
        self.paused = False
        self.backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def at(self, delay: float, call: Callable[..., Any], *arguments: Any) -> None:
        self.loop.at(delay, self, call, *arguments)

    def freeze(self) -> None:
        self.frozen = self.paused = True

    def wake(self) -> None:
        if self.frozen:
            self.frozen = False
            self._go_on()

    def block(self, seconds: float) -> None:
        """Wait inside a call, as for an answer of the store, while everybody else goes on."""
        self.blocked += 1
        self.paused = True
        loop = self.loop
        loop.run(loop.now + seconds)
        while self.frozen and self.alive and not loop.done:
            loop.run(loop.now + 0.2)
        self.blocked -= 1
        if not self.alive or loop.done:
            raise Died
        self._go_on()

    def _go_on(self) -> None:
        if self.frozen or self.blocked:
            return
        self.paused = False
        backlog, self.backlog = self.backlog, []
        for call, arguments in backlog:
            self.at(0.0, call, *arguments)
