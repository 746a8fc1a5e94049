"""How the ranks of one generation find each other: keys and values that the controller keeps. Runs in the worker and in the controller.

`RendezvousStore` is what a rank has, `Rendezvous` is the controller's. A controller that is lost takes no rank with it: what a rank has set
and what it waits for, it says again to the next controller.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from launcher.core.types import Generation, WorkerId
from launcher.runtime.protocol.messages import GetKey, SetKey, Value


class RendezvousStore:
    """A rank's view of the keys of its generation; no other generation's are ever seen. For any thread."""

    def __init__(self, generation: Generation, send: Callable[[SetKey | GetKey], None]) -> None:
        self._generation = generation
        self._send = send
        self._changed = threading.Condition()
        self._set: dict[str, SetKey] = {}
        self._wanted: dict[str, GetKey] = {}
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        message = SetKey(self._generation, key, base64.b64encode(value).decode())
        with self._changed:
            self._set[key] = message
        self._send(message)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Waits until some rank has set the key. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        message = GetKey(self._generation, key)
        with self._changed:
            wanted = key not in self._values
            if wanted:
                self._wanted[key] = message
        if wanted:
            self._send(message)  # without the lock: whoever calls `answered` holds locks that sending needs
        with self._changed:
            while key not in self._values:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no rank of generation {self._generation} has set {key} within {timeout_s:g} s")
            return self._values[key]

    def answered(self, value: Value) -> None:
        if value.generation != self._generation:
            return
        with self._changed:
            self._values[value.key] = base64.b64decode(value.value)
            self._wanted.pop(value.key, None)
            self._changed.notify_all()

    def repeat(self) -> None:
        """Tell a new controller what it has to know."""
        with self._changed:
            messages: list[SetKey | GetKey] = [*self._set.values(), *self._wanted.values()]
        for message in messages:
            self._send(message)


@dataclass
class Rendezvous:
    """What is set and who waits for what, in all generations of a controller's term. For one thread."""

    values: dict[tuple[Generation, str], str] = field(default_factory=dict)
    waiting: dict[tuple[Generation, str], set[WorkerId]] = field(default_factory=lambda: defaultdict(set))

    def heard(self, worker: WorkerId, message: SetKey | GetKey) -> list[tuple[WorkerId, Value]]:
        """What to answer to whom."""
        place = (message.generation, message.key)
        if isinstance(message, SetKey):
            self.values[place] = message.value
            ready = self.waiting.pop(place, set())
        elif place in self.values:
            ready = {worker}
        else:
            self.waiting[place].add(worker)
            return []
        answer = Value(*place, self.values[place])
        return [(receiver, answer) for receiver in sorted(ready)]

    def forget(self, below: Generation) -> None:
        """The keys of earlier generations."""
        self.values = {place: value for place, value in self.values.items() if place[0] >= below}
        for place in [place for place in self.waiting if place[0] < below]:
            del self.waiting[place]
