"""Lines of other nodes' processes find their worker, also those that come before it is known."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest

from launcher.core.types import WorkerId
from launcher.runtime.cluster import log_channel
from launcher.runtime.cluster.log_channel import LogChannel

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_channel, "POLL_S", 0.01)
    monkeypatch.setattr(log_channel, "LAST_S", 0.05)


class Subscriber:
    def __init__(self) -> None:
        self.batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = False
        self.silences = threading.Semaphore(0)

    def poll(self, timeout: float) -> Any:
        """As Ray's: an empty batch where nothing came, here at once as from a head that is away."""
        try:
            return self.batches.get_nowait()
        except queue.Empty:
            self.silences.release()
            return batch("", "")

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


def test_silence_takes_no_place_of_what_a_worker_said_early_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_channel, "UNKNOWN", 3)
    subscriber, told = Subscriber(), queue.SimpleQueue[str]()
    channel = LogChannel(lambda: subscriber, lambda worker, stream, line: told.put(line))
    subscriber.batches.put(batch("10.0.0.1", 7, "early"))
    began = time.monotonic()
    for _ in range(6):
        assert subscriber.silences.acquire(timeout=5)
    assert time.monotonic() - began > 4 * log_channel.POLL_S
    channel.follow(WorkerId("w0"), "10.0.0.1", 7)
    assert told.get(timeout=5) == "early"
    channel.finish()


def test_a_head_that_does_not_answer_is_asked_again() -> None:
    subscriber, told = Subscriber(), queue.SimpleQueue[str]()
    answers = iter([ConnectionError("no"), subscriber])

    def subscribe() -> Subscriber:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    channel = LogChannel(subscribe, lambda worker, stream, line: told.put(line))
    channel.follow(WorkerId("w0"), "10.0.0.1", 7)
    subscriber.batches.put(batch("10.0.0.1", 7, "heard"))
    assert told.get(timeout=5) == "heard"
    channel.finish()
