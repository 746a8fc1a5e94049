"""What a pod does before it is ended: it waits for its workers, and only for them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from launcher.runtime.pod import prestop

pytestmark = pytest.mark.unit


def test_a_pod_without_workers_has_nothing_to_wait_for(tmp_path: Path) -> None:
    assert prestop.main([str(tmp_path / "none"), "25"]) == 0


def test_the_node_is_drained_once_and_the_wait_ends_with_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prestop.WORKERS_FOLDER, str(tmp_path))
    prestop.say_here("node", "10.0.0.1:6379")
    drained: list[tuple[str, str, float]] = []
    monkeypatch.setattr(prestop, "drain", lambda *given: drained.append(given))
    monkeypatch.setattr(prestop, "POLL_S", 0.001)
    assert prestop.main([str(tmp_path), "0.01"]) == 0
    assert drained == [("10.0.0.1:6379", "node", 0.01)]


def test_workers_that_have_ended_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prestop.WORKERS_FOLDER, str(tmp_path))
    prestop.say_here("node", "10.0.0.1:6379")
    (record,) = tmp_path.glob("*.json")
    record.write_text(record.read_text().replace(f'"pid":{os.getpid()}', '"pid":999999999'))
    monkeypatch.setattr(prestop, "drain", lambda *given: pytest.fail("there is nobody to let go"))
    assert prestop.main([str(tmp_path), "25"]) == 0


def test_workers_are_told_themselves_where_the_head_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prestop.WORKERS_FOLDER, str(tmp_path))
    prestop.say_here("node", "10.0.0.1:6379")
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(prestop.ProcessRef, "signal", lambda process, number: told.append((process.pid, number)))
    monkeypatch.setattr(prestop, "POLL_S", 0.001)
    assert prestop.main([str(tmp_path), "0.01"]) == 0
    assert asked == [("10.0.0.1", 6379)]
    assert told == [(os.getpid(), signal.SIGTERM)]


def test_outside_of_a_pod_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(prestop.WORKERS_FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    prestop.say_here("node", "10.0.0.1:6379")
    assert list(tmp_path.iterdir()) == []
