"""A controller that takes office in an image leaves word of its versions, and ends at once a run of other ones: no Ray is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.clock import SystemClock
from launcher.core.errors import ConfigError
from launcher.core.exit_codes import ExitCode
from launcher.core.types import RunId, Term
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.versions import installed_versions, read_image
from launcher.record.desired import Desired
from launcher.record.encoding import encode
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.controller.__main__ import Given, lead
from tests.support.fakes import job_config

pytestmark = pytest.mark.storage
IMAGE = "registry.example/launcher:1"
OTHERS = {**installed_versions(), "ray": "1.0.0"}


@pytest.fixture
def spec(uri: str, run: RunStore) -> JobSpec:
    given = job_config(uri, backend={"name": "kuberay", "image": IMAGE})
    at = "2026-01-01T00:00:00.000Z"
    return JobSpec(run_id=RunId(run.run_id), name="r1", config=given, code=CodeRef(digest=""), versions=OTHERS, submitted_at=at)


def controller_of(run: RunStore, state: Path, document: dict[str, object], spec: JobSpec) -> Given:
    run.store.put(run.key("spec-1.json"), encode(document))
    run.create_desired(Desired(revision=1, state="running", spec=1, workers=spec.config.workers, by="ann", at=spec.submitted_at))
    return Given(run, state, ray="auto", worker_resource=None, pod_group=None, image=IMAGE)


def test_a_job_of_other_versions_ends_before_a_worker_starts(run: RunStore, spec: JobSpec, tmp_path: Path) -> None:
    assert lead(controller_of(run, tmp_path, spec.to_json(), spec), SystemClock()) == 0
    status = run.status(Term(1))
    assert status is not None
    assert (status.state, status.exit_code) == (JobState.FAILED, ExitCode.INFRASTRUCTURE)
    assert f"ray {installed_versions()['ray']} instead of 1.0.0" in status.reason
    assert "backend.image" in status.reason
    seen = read_image(run.store, IMAGE)
    assert seen is not None
    assert seen.versions == installed_versions()


def test_what_another_launcher_wrote_and_this_one_cannot_read_is_told_as_such(run: RunStore, spec: JobSpec, tmp_path: Path) -> None:
    foreign = {**replace(spec, versions={**OTHERS, "launcher": "9.0"}).to_json(), "new_since_then": 1}
    with pytest.raises(ConfigError, match=r"launcher 0\.1\.0 instead of 9\.0"):
        lead(controller_of(run, tmp_path, foreign, spec), SystemClock())
