"""Fixtures for tests of what stands on the use cases: a run store in a temporary folder, a fake backend, a scripted clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import jobs
from launcher.backends import base
from launcher.jobs import packing
from launcher.jobs.refs import RunRef
from tests.support.fakes import FakeBackend, ScriptedClock, code_archive, install_backend, job_config


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setitem(base.BACKENDS, "local", install_backend(fake))
    return fake


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of code whose archive is made up, so that no git is called."""
    monkeypatch.setattr("launcher.jobspec.code.archive", lambda *_args, **_options: code_archive())
    monkeypatch.setattr(packing, "shipped_folder", lambda: tmp_path)
    return tmp_path / "code"


@pytest.fixture
def submit(backend: FakeBackend, code: Path, runs: Path, clock: ScriptedClock) -> Callable[..., RunRef]:
    def submit(**changes: object) -> RunRef:
        return jobs.submit(job_config(runs, **changes), folder=code, clock=clock)

    return submit
