"""One local Ray for all tests of this level; a project folder and a place for runs for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clusters import ray_cluster
from tests.support.jobs import Project, project_in, ray_of_its_own
from tests.support.s3 import build_before, s3, s3_environment

__all__ = ["s3", "s3_environment"]


def pytest_collection_finish(session: pytest.Session) -> None:
    build_before(session)


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    with ray_of_its_own() as folder:
        yield folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray without jobs, of which this process is the driver."""
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def project(ray_folder: Path, tmp_path: Path) -> Iterator[Project]:
    with project_in(tmp_path, ray_folder) as made:
        yield made
