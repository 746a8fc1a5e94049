"""What a job on a cluster rests on beside its code: the versions of its image, and its extra packages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import jobs
from launcher.backends import base
from launcher.core.errors import ConfigError
from launcher.core.store import open_store
from launcher.jobs import resuming
from launcher.jobs.refs import RunRef
from launcher.jobspec.packages import requirements_key
from launcher.jobspec.versions import installed_versions, record_image
from launcher.record.status import JobState
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock, install_backend, job_config

pytestmark = pytest.mark.unit
IMAGE = "registry.example/launcher:1"


@pytest.fixture
def submit(submit: Callable[..., RunRef], backend: FakeBackend, code: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunRef]:
    """To a cluster, from a folder that is there."""
    monkeypatch.setitem(base.BACKENDS, "kuberay", install_backend(backend))
    code.mkdir()
    return lambda **keys: submit(name="mine", backend={"name": "kuberay", "image": IMAGE, **keys})


def saw(runs: Path, clock: ScriptedClock, **versions: str) -> None:
    record_image(open_store(str(runs), create=True), IMAGE, {**installed_versions(), **versions}, clock)


def test_the_packages_that_a_job_needs_are_archived_with_it(
    submit: Callable[..., RunRef], code: Path, backend: FakeBackend, clock: ScriptedClock
) -> None:
    (code / "extra.txt").write_text("einops==0.8.1\n")
    ref = submit(requirements="extra.txt")
    digest = hashlib.sha256(b"einops==0.8.1\n").hexdigest()
    assert backend.launched[-1].code.packages == digest
    run = ref.open()
    assert run.store.get(run.key(requirements_key(digest))) == b"einops==0.8.1\n"
    (code / "extra.txt").write_text("einops==0.9\n")
    FakeController(run, clock).begin_term().end(JobState.FAILED, exit_code=1)
    jobs.resume(ref, clock=clock)
    assert backend.launched[-1].code.packages == digest


def test_a_job_without_extra_packages_archives_none(submit: Callable[..., RunRef], backend: FakeBackend) -> None:
    run = submit().open()
    assert backend.launched[-1].code.packages is None
    assert run.names("packages") == []


def test_packages_that_cannot_travel_are_refused_before_anything_is_written(
    submit: Callable[..., RunRef], code: Path, runs: Path, backend: FakeBackend
) -> None:
    (code / "extra.txt").write_text("--index-url https://ann:s3cret@host.example/simple\n")
    for name in ("extra.txt", "nothing.txt"):
        with pytest.raises(ConfigError, match="requirements file"):
            submit(requirements=name)
        with pytest.raises(ConfigError, match="requirements file"):
            jobs.plan(job_config(runs, backend={"name": "kuberay", "image": IMAGE, "requirements": name}), folder=code)
    assert not runs.exists()
    assert backend.launched == []


def test_an_image_that_is_known_not_to_fit_is_refused_before_anything_is_written(
    submit: Callable[..., RunRef], code: Path, runs: Path, clock: ScriptedClock, backend: FakeBackend
) -> None:
    saw(runs, clock, ray="1.0.0")
    before = sorted(runs.rglob("*"))
    with pytest.raises(ConfigError, match=r"ray 1\.0\.0 instead of") as caught:
        submit()
    assert caught.value.where == "backend.image"
    with pytest.raises(ConfigError, match=r"ray 1\.0\.0 instead of"):
        jobs.plan(job_config(runs, backend={"name": "kuberay", "image": IMAGE}), folder=code)
    assert sorted(runs.rglob("*")) == before
    assert backend.launched == []
    saw(runs, clock)
    assert submit().name == "mine"


def test_another_image_and_another_backend_are_not_judged_by_it(
    submit: Callable[..., RunRef], code: Path, runs: Path, clock: ScriptedClock
) -> None:
    saw(runs, clock, ray="1.0.0")
    submit(image="registry.example/launcher:2")
    jobs.submit(job_config(runs), folder=code, clock=clock)


def test_a_resume_is_held_to_the_machine_that_resumes(
    submit: Callable[..., RunRef], runs: Path, clock: ScriptedClock, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = submit()
    FakeController(ref.open(), clock).begin_term().end(JobState.FAILED, exit_code=1)
    saw(runs, clock, ray="1.0.0")
    with pytest.raises(ConfigError, match=r"ray 1\.0\.0 instead of"):
        jobs.resume(ref, clock=clock)
    saw(runs, clock)
    newer = {**installed_versions(), "python": "3.11.99"}
    monkeypatch.setattr(resuming, "installed_versions", lambda: newer)
    jobs.resume(ref, clock=clock)
    assert (backend.launched[-1].number, backend.launched[-1].versions) == (2, newer)
