"""What workers of other nodes print: Ray's log monitor of each node publishes the lines of its processes, also what a dying one said last.

The guarantee ends with the channel: lines that are published while no controller listens, or faster than it hears, are in the files of
their node alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from launcher.core.types import WorkerId

POLL_S = 1.0
UNKNOWN = 1000
"""So many batches are kept until it is known whose they are: a worker prints before it has been introduced."""
LAST_S = 1.0
"""What was printed last is on its way for so long: the log monitor looks several times a second."""

Process = tuple[str, int]
"""Address of a node, and a process id on it."""


class LogChannel:
    def __init__(self, subscribe: Callable[[], Any], said: Callable[[WorkerId, str, str], None]) -> None:
        """`subscribe` gives something to poll (ray._raylet.GcsLogSubscriber); `said` gets worker, stream and line, on this object's thread."""
        self._subscribe, self._said = subscribe, said
        self._lock = threading.Lock()
        self._workers: dict[Process, WorkerId] = {}
        self._unknown: deque[Any] = deque(maxlen=UNKNOWN)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="log-channel", daemon=True)
        self._thread.start()

    def follow(self, worker: WorkerId, node_ip: str, pid: int) -> None:
        with self._lock:
            self._workers[(node_ip, pid)] = worker
            waiting, self._unknown = self._unknown, deque(maxlen=UNKNOWN)
            for batch in waiting:
                self._tell(batch)

    def finish(self) -> None:
        """Hear what is still on its way, then end."""
        if self._workers:
            time.sleep(LAST_S)
        self._ended.set()
        self._thread.join(timeout=2 * POLL_S)

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                self._hear(self._subscribe())
            except Exception:  # noqa: BLE001 - whatever the client makes of a head that does not answer
                self._ended.wait(POLL_S)

    def _hear(self, subscriber: Any) -> None:
        try:
            while not self._ended.is_set():
                asked = time.monotonic()
                batch = subscriber.poll(timeout=POLL_S)
                if batch and batch["lines"]:
                    with self._lock:
                        self._tell(batch)
                else:  # nothing was said; from a head that is away this answer comes at once, again and again
                    self._ended.wait(max(0.0, POLL_S - (time.monotonic() - asked)))
        finally:
            with suppress(Exception):
                subscriber.close()

    def _tell(self, batch: Any) -> None:
        """With the lock held."""
        worker = self._workers.get((str(batch["ip"]), int(batch["pid"]) if str(batch["pid"]).isdigit() else -1))
        if worker is None:
            self._unknown.append(batch)
            return
        stream = "stderr" if batch["is_err"] else "stdout"
        for line in batch["lines"]:
            self._said(worker, stream, str(line))
