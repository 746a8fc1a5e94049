"""What workers of other nodes print, over the channel of Ray's log monitors. Runs in the controller, on a thread of its own.

The log monitor of each node publishes the lines of its processes, also what a dying one said last. The guarantee ends with the channel:
lines that are published while no controller listens, or faster than it hears, are in the files of their node alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.core.types import WorkerId

POLL_S = 1.0
UNKNOWN = 1000
"""So many batches are kept until it is known whose they are: a worker prints before it has been introduced."""
LAST_S = 1.0
"""What was printed last is on its way for so long: the log monitor looks several times a second."""


class Subscriber(Protocol):
    """ray._raylet.GcsLogSubscriber, once it has subscribed."""

    def poll(self, timeout: float) -> Mapping[str, Any] | None:
        """The next batch: `ip`, `pid`, `is_err` and `lines`; None or no lines where there is none."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Process:
    node_ip: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Batch:
    process: Process
    stream: str
    lines: tuple[str, ...]


class LogChannel:
    def __init__(self, subscribe: Callable[[], Subscriber], printed: Callable[[WorkerId, str, str], None]) -> None:
        """`printed` gets worker, stream (stdout or stderr) and line, on this object's thread."""
        self._subscribe, self._printed = subscribe, printed
        self._lock = threading.Lock()
        self._workers: dict[Process, WorkerId] = {}
        self._unknown: deque[_Batch] = deque(maxlen=UNKNOWN)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="log-channel", daemon=True)
        self._thread.start()

    def follow(self, worker: WorkerId, node_ip: str, pid: int) -> None:
        """Tell this worker's lines, also those that came before."""
        with self._lock:
            self._workers[Process(node_ip, pid)] = worker
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

    def _hear(self, subscriber: Subscriber) -> None:
        try:
            while not self._ended.is_set():
                asked = time.monotonic()
                published = subscriber.poll(timeout=POLL_S)
                if published and published["lines"]:
                    with self._lock:
                        self._tell(_batch(published))
                else:  # nothing was said; from a head that is away this answer comes at once, again and again
                    self._ended.wait(max(0.0, POLL_S - (time.monotonic() - asked)))
        finally:
            with suppress(Exception):
                subscriber.close()

    def _tell(self, batch: _Batch) -> None:
        """With the lock held."""
        worker = self._workers.get(batch.process)
        if worker is None:
            self._unknown.append(batch)
            return
        for line in batch.lines:
            self._printed(worker, batch.stream, line)


def _batch(published: Mapping[str, Any]) -> _Batch:
    """What Ray publishes; a pid that is none (Ray's own processes have words there) is nobody's."""
    pid = str(published["pid"])
    process = Process(str(published["ip"]), int(pid) if pid.isdigit() else -1)
    return _Batch(process, "stderr" if published["is_err"] else "stdout", tuple(str(line) for line in published["lines"]))
