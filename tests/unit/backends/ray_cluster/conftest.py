from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.backends.ray_cluster import jobs_api
from launcher.core.store import open_store
from launcher.core.types import RunId
from launcher.record.run_store import RunStore
from tests.unit.backends.ray_cluster.fake_dashboard import FakeDashboard, config, desire, spec


@pytest.fixture(autouse=True)
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDashboard:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = FakeDashboard()
    monkeypatch.setattr(jobs_api, "urlopen", made)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    """A record as a submit leaves it, before the backend is asked."""
    run = RunStore(open_store(str(tmp_path / "runs"), create=True), RunId("mlp-abcdef"))
    run.store.put(run.key("spec-1.json"), json.dumps(spec(config()).to_json()).encode())
    desire(run, 1)
    return run
