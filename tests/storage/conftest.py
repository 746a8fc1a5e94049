"""The same test bodies run on a local folder and on a real S3 server."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from launcher.core.store import ObjectStore, open_store
from launcher.core.types import RunId
from launcher.record.run_store import RunStore
from tests.support.s3 import build_before, s3, s3_environment

__all__ = ["s3", "s3_environment"]


def pytest_collection_finish(session: pytest.Session) -> None:
    build_before(session)


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for runs."""
    if request.param == "folder":
        return str(tmp_path / "runs")
    place: str = request.getfixturevalue("s3_environment").uri(f"test-{secrets.token_hex(6)}")
    return place


@pytest.fixture
def store(uri: str) -> ObjectStore:
    return open_store(uri, create=True)


@pytest.fixture
def run(store: ObjectStore) -> RunStore:
    return RunStore(store, RunId("r1"))
