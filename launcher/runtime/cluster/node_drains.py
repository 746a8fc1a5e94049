"""Which nodes Ray is draining: each new drain, or new deadline, is told once. Runs in the controller, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

POLL_S = 1.0


@dataclass(frozen=True)
class NodeDrain:
    node_id: str
    """In hexadecimal, as a worker knows its own: ray.get_runtime_context().get_node_id()."""
    deadline_s: float | None
    """Seconds from now, not negative; None: whoever drains gave no deadline."""

    @property
    def detail(self) -> str:
        within = "without a deadline" if self.deadline_s is None else f"within {self.deadline_s:.0f} s"
        return f"Ray drains node {self.node_id[:12]} {within}"


def draining_deadlines() -> dict[str, int]:
    """Node id -> when it goes, in milliseconds of Unix time on the clock of whoever drains it; 0: not said.

    Ray has no public call for this; its own Train asks the same way. The guarantee ends with the version of Ray that the
    constraints name, and with clocks of machines that differ by as much as the deadline.
    """
    deadlines: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return deadlines


def news(before: Mapping[str, int], after: Mapping[str, int], *, now_s: float) -> tuple[NodeDrain, ...]:
    """What `after` has that `before` had not, or had with another deadline; `now_s` is Unix time."""
    return tuple(
        NodeDrain(node, max(0.0, deadline / 1000 - now_s) if deadline else None)
        for node, deadline in sorted(after.items())
        if before.get(node) != deadline
    )


class NodeDrains:
    """To be made when this process is a driver of Ray. `draining` is called on this object's thread.

    A drained node takes no new actors. Ray ends it as soon as its last actor is gone, but not at the deadline: that is
    left to whoever drains it.
    """

    def __init__(
        self,
        draining: Callable[[NodeDrain], None],
        *,
        look: Callable[[], Mapping[str, int]] = draining_deadlines,
        poll_s: float = POLL_S,
    ) -> None:
        self._draining, self._look, self._poll_s = draining, look, poll_s
        self._ended = threading.Event()
        threading.Thread(target=self._serve, name="node-drains", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _serve(self) -> None:
        known: Mapping[str, int] = {}
        while not self._ended.is_set():
            found = self._look()
            for drain in news(known, found, now_s=time.time()):
                self._draining(drain)
            known = found
            self._ended.wait(self._poll_s)
