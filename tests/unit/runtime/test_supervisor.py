"""The supervisor: how long it goes on with controllers that die."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.core.process import ProcessRef
from launcher.runtime import supervisor

pytestmark = pytest.mark.unit


class Controllers:
    """Each lives for so many seconds and ends with a code."""

    pid = 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lives: list[tuple[float, int]]) -> None:
        self.now = 0.0
        self._lives = iter(lives)
        self.started = 0
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=lambda seconds: None))
        monkeypatch.setattr(supervisor, "subprocess", SimpleNamespace(Popen=lambda command, **options: self, DEVNULL=None))
        monkeypatch.setattr(supervisor, "ProcessRef", SimpleNamespace(of=lambda pid: ProcessRef(pid, "now", "boot")))

    def wait(self) -> int:
        self.started += 1
        seconds, code = next(self._lives)
        self.now += seconds
        return code


def supervise(monkeypatch: pytest.MonkeyPatch, folder: Path, lives: list[tuple[float, int]]) -> tuple[int, int]:
    """Exit code, and how many controllers there were."""
    controllers = Controllers(monkeypatch, lives)
    given = ["--runs", "r", "--run-id", "i", "--state", str(folder), "--controller-file", str(folder / "controller")]
    return supervisor.main(given), controllers.started


def test_a_controller_that_is_killed_is_replaced_however_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lives = [*[(1.2 * supervisor.QUICK_S, -9)] * 20, (60.0, 0)]
    assert supervise(monkeypatch, tmp_path, lives) == (0, 21)


def test_some_that_die_at_once_are_forgotten_when_one_has_lived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick, long = (1.0, 1), (60.0, -9)
    assert supervise(monkeypatch, tmp_path, [quick, quick, long, quick, quick, long, (5.0, 0)]) == (0, 7)


def test_a_controller_that_cannot_live_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert supervise(monkeypatch, tmp_path, [(1.0, 1)] * 10) == (1, supervisor.QUICK_LIMIT)


def test_who_finds_that_another_one_leads_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert supervise(monkeypatch, tmp_path, [(60.0, supervisor.FENCED)]) == (supervisor.FENCED, 1)
