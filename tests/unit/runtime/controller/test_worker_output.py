"""From where a worker's output is read: its files on this node, Ray's log channel from others."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import cast

import msgspec
import pytest

from launcher.core.types import WorkerId
from launcher.runtime.cluster.log_channel import LogChannel
from launcher.runtime.cluster.log_tail import LogTail
from launcher.runtime.controller.worker_output import WorkerOutput
from tests.unit.runtime.controller.harness import A, described

pytestmark = pytest.mark.unit


class FakeTail:
    def __init__(self) -> None:
        self.followed: list[tuple[WorkerId, str, Path, bool]] = []
        self.finished = False

    def follow(self, worker: WorkerId, stream: str, path: Path, *, from_end: bool) -> None:
        self.followed.append((worker, stream, path, from_end))

    def finish(self) -> None:
        self.finished = True


class FakeChannel:
    def __init__(self) -> None:
        self.followed: list[tuple[WorkerId, str, int]] = []
        self.finished = False

    def follow(self, worker: WorkerId, ip: str, pid: int) -> None:
        self.followed.append((worker, ip, pid))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def tail(monkeypatch: pytest.MonkeyPatch) -> FakeTail:
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    return FakeTail()


HERE = msgspec.structs.replace(described(A, node="here", pid=7), stdout="/logs/out", stderr="/logs/err", node_ip="10.0.0.2")
SILENT = msgspec.structs.replace(HERE, stderr="")
ELSEWHERE = msgspec.structs.replace(HERE, node="there")


@pytest.mark.parametrize("from_end", [False, True])
def test_the_files_of_a_worker_on_this_node_are_followed(tail: FakeTail, *, from_end: bool) -> None:
    channel = FakeChannel()
    output = WorkerOutput(cast(LogTail, tail), cast(LogChannel, channel))
    output.follow(A, HERE, from_end=from_end)
    assert tail.followed == [(A, "stdout", Path("/logs/out"), from_end), (A, "stderr", Path("/logs/err"), from_end)]
    assert channel.followed == []


def test_output_that_goes_to_no_file_is_not_followed(tail: FakeTail) -> None:
    WorkerOutput(cast(LogTail, tail), None).follow(A, SILENT, from_end=False)
    assert [stream for _, stream, _, _ in tail.followed] == ["stdout"]


def test_a_worker_on_another_node_is_followed_over_the_channel(tail: FakeTail) -> None:
    channel = FakeChannel()
    WorkerOutput(cast(LogTail, tail), cast(LogChannel, channel)).follow(A, ELSEWHERE, from_end=False)
    assert (tail.followed, channel.followed) == ([], [(A, "10.0.0.2", 7)])


def test_without_a_channel_nothing_is_heard_from_another_node(tail: FakeTail) -> None:
    output = WorkerOutput(cast(LogTail, tail), None)
    output.follow(A, ELSEWHERE, from_end=False)
    output.finish()
    assert (tail.followed, tail.finished) == ([], True)


def test_the_end_reads_what_is_left_of_both(tail: FakeTail) -> None:
    channel = FakeChannel()
    WorkerOutput(cast(LogTail, tail), cast(LogChannel, channel)).finish()
    assert (tail.finished, channel.finished) == (True, True)
