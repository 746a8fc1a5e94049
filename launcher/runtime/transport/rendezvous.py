"""The keys and values through which the ranks of one generation find each other, kept by the controller, reached over the link.

Losing the controller costs no rank its life: what was set and what is waited for is said again to the next one.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from launcher.core.types import Generation, JsonObject, WorkerId


class RendezvousStore:
    """A worker's side. Keys of one generation are never seen by another."""

    def __init__(self, generation: int, send: Callable[[JsonObject], None]) -> None:
        self._generation = generation
        self._send = send
        self._changed = threading.Condition()
        self._set: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        text = base64.b64encode(value).decode()
        with self._changed:
            self._set[key] = text
        self._say("set", key, text)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Waits until some rank has set the key. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            wanted = key not in self._values
            if wanted:
                self._wanted.add(key)
        if wanted:
            self._say("get", key)  # without the lock: whoever hears the answer holds others
        with self._changed:
            while key not in self._values:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no rank of generation {self._generation} has set {key} within {timeout_s:g} s")
            return self._values[key]

    def answered(self, message: JsonObject) -> None:
        if message["generation"] != self._generation:
            return
        with self._changed:
            self._values[str(message["key"])] = base64.b64decode(str(message["value"]))
            self._wanted.discard(str(message["key"]))
            self._changed.notify_all()

    def repeat(self) -> None:
        """Tell a new controller what it has to know."""
        for key, text in list(self._set.items()):
            self._say("set", key, text)
        for key in list(self._wanted):
            self._say("get", key)

    def _say(self, kind: str, key: str, value: str = "") -> None:
        self._send({"kind": kind, "generation": self._generation, "key": key, "value": value})


@dataclass
class Rendezvous:
    """The controller's side, for all generations of its term."""

    values: dict[tuple[Generation, str], str] = field(default_factory=dict)
    waiting: dict[tuple[Generation, str], set[WorkerId]] = field(default_factory=lambda: defaultdict(set))

    def forget(self, below: Generation) -> None:
        self.values = {place: value for place, value in self.values.items() if place[0] >= below}
        for place in [place for place in self.waiting if place[0] < below]:
            del self.waiting[place]

    def heard(self, worker: WorkerId, message: JsonObject) -> list[tuple[WorkerId, JsonObject]]:
        """What to answer to whom."""
        place = (Generation(int(str(message["generation"]))), str(message["key"]))
        if message["kind"] == "set":
            self.values[place] = str(message["value"])
            ready = self.waiting.pop(place, set())
        elif place in self.values:
            ready = {worker}
        else:
            self.waiting[place].add(worker)
            return []
        answer: JsonObject = {"kind": "value", "generation": place[0], "key": place[1], "value": self.values[place]}
        return [(receiver, answer) for receiver in sorted(ready)]
