"""Lines of other nodes' processes find their worker, also those that come before it is known."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from launcher.core.types import WorkerId
from launcher.runtime.log_channel import LogChannel

pytestmark = pytest.mark.unit


class Subscriber:
    def __init__(self) -> None:
        self.batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = False

    def poll(self, timeout: float) -> Any:
        try:
            return self.batches.get(timeout=0.01)
        except queue.Empty:
            return None

    def close(self) -> None:
        self.closed = True


def batch(ip: str, pid: object, *lines: str, is_err: bool = False) -> dict[str, Any]:
    return {"ip": ip, "pid": pid, "is_err": is_err, "lines": list(lines)}


def test_lines_are_told_by_node_and_process_and_none_is_lost_before_the_worker_is_known() -> None:
    subscriber = Subscriber()
    told: queue.SimpleQueue[tuple[WorkerId, str, str]] = queue.SimpleQueue()
    channel = LogChannel(lambda: subscriber, lambda worker, stream, line: told.put((worker, stream, line)))
    subscriber.batches.put(batch("10.0.0.1", "7", "early"))
    subscriber.batches.put(batch("10.0.0.2", 7, "another node's process of the same number"))
    subscriber.batches.put(batch("10.0.0.1", "raylet", "not a worker"))
    channel.follow(WorkerId("w0"), "10.0.0.1", 7)
    subscriber.batches.put(batch("10.0.0.1", 7, "late", "later", is_err=True))
    heard = [told.get(timeout=5) for _ in range(3)]
    assert heard == [("w0", "stdout", "early"), ("w0", "stderr", "late"), ("w0", "stderr", "later")]
    channel.finish()
    assert subscriber.closed
    assert told.empty()
