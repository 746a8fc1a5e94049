"""A run in memory and a job, for tests of what a controller records."""

from __future__ import annotations

import pytest

from launcher.core.types import RunId
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from tests.support.recording import job_spec
from tests.support.stores import MemoryStore


@pytest.fixture
def run() -> RunStore:
    return RunStore(MemoryStore(), RunId("r"))


@pytest.fixture(scope="session")
def spec() -> JobSpec:
    return job_spec()
