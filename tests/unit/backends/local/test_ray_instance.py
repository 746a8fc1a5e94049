"""The folder of the local Ray: whom it trusts, what it tells; nothing is started."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.backends.base import Owner, Result
from launcher.backends.local import ray_instance
from launcher.backends.local.backend import LocalBackend
from launcher.backends.local.supervisors import LocalJob, files_of
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.core.process import ProcessRef
from launcher.core.store import open_store
from launcher.core.types import RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.run_store import RunStore
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
NOBODY = ProcessRef(pid=2**22 + 1, started="1", boot="another boot")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    monkeypatch.setattr(ray_instance, "LONGEST_FOLDER", 200)
    monkeypatch.setenv("LAUNCHER_RAY_DIR", str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore(open_store(str(tmp_path / "runs"), create=True), RunId("r"))


def here(state: Path) -> ray_instance.LocalRay:
    ray_instance.folder()
    ray = ray_instance.LocalRay(
        address="127.0.0.1:1", dashboard="", session="", versions=ray_instance.versions(), keeper=ProcessRef.of(os.getpid()), gpus=0
    )
    ray_instance.write(state, ray)
    return ray


def test_the_token_is_made_once_and_for_this_user_alone(state: Path) -> None:
    token = ray_instance.token_file(ray_instance.folder())
    text = token.read_text()
    assert len(text) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert ray_instance.token_file(state).read_text() == text


def test_a_folder_that_others_can_write_is_refused(state: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(BackendUnavailable, match="somebody else"):
        ray_instance.folder()


def test_a_path_too_long_for_sockets_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_instance, "LONGEST_FOLDER", 10)
    with pytest.raises(BackendUnavailable, match="too long"):
        ray_instance.folder()


def test_a_ray_is_there_only_while_its_keeper_lives(state: Path) -> None:
    ray = here(state)
    assert ray_instance.read(state) == ray
    ray_instance.write(state, replace(ray, keeper=NOBODY))
    assert ray_instance.read(state) is None
    (state / "ray.json").write_text("{")
    assert ray_instance.read(state) is None


def test_a_ray_of_other_versions_is_refused_with_the_way_out(state: Path) -> None:
    ray_instance.write(ray_instance.folder(), replace(here(state), versions={"ray": "1.0", "python": "3.6"}))
    with pytest.raises(BackendUnavailable, match="other versions") as refused:
        ray_instance.ensure(state)
    assert "LAUNCHER_RAY_DIR" in str(refused.value)


def test_one_keeper_at_a_time(state: Path) -> None:
    ray_instance.folder()
    assert not ray_instance.keeper_holds(state)
    with ray_instance.keeper_lock(state) as mine:
        assert mine
        assert ray_instance.keeper_holds(state)
    assert not ray_instance.keeper_holds(state)


def test_who_owns_a_run_is_known_by_its_processes(state: Path, run: RunStore) -> None:
    backend = LocalBackend()
    assert backend.owner(run) is Owner.UNKNOWN
    assert not state.exists(), "looking touches nothing"
    files = files_of(ray_instance.folder(), run)
    files.record.parent.mkdir()
    files.write(LocalJob(run.run_id, run.store.uri, ProcessRef.of(os.getpid())))
    assert backend.owner(run) is Owner.ALIVE
    files.write(LocalJob(run.run_id, run.store.uri, NOBODY))
    assert backend.owner(run) is Owner.GONE


def test_a_pid_that_was_given_to_another_process_is_not_the_one_that_is_meant() -> None:
    me = ProcessRef.of(os.getpid())
    assert me.alive()
    assert not replace(me, started="7").alive()
    assert not replace(me, boot="before").alive()
    assert ProcessRef.from_json(me.to_json()) == me


def test_ray_is_started_without_what_its_first_command_had(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(ray_instance.subprocess, "Popen", lambda *_args, env, **_options: started.append(env))
    monkeypatch.setenv("DATA_ROOT", "/a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ray_instance.ensure(ray_instance.folder())
    (environment,) = started
    assert environment["PATH"] == os.environ["PATH"]
    assert (environment["LAUNCHER_RAY_DIR"], environment["CUDA_VISIBLE_DEVICES"]) == (str(state), "0")
    assert not environment.keys() & {"DATA_ROOT", "AWS_SECRET_ACCESS_KEY"}


def test_a_supervisor_has_all_that_its_command_has(state: Path, run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []

    def popen(*_args: object, env: dict[str, str], **_options: object) -> SimpleNamespace:
        started.append(env)
        return SimpleNamespace(pid=os.getpid())

    here(state)
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("HF_TOKEN", "s3cr3t")
    LocalBackend().launch(spec_of(HF_TOKEN={"secret": "HF_TOKEN"}), run)
    assert started[0]["HF_TOKEN"] == "s3cr3t"


def test_a_secret_that_the_command_lacks_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for reference in ("HF_TOKEN", "team/token"):
        with pytest.raises(ConfigError) as caught:
            LocalBackend().place(spec_of(MY_TOKEN={"secret": reference}))
        assert caught.value.where == "environment.MY_TOKEN.secret"
        config = spec_of(MY_TOKEN={"secret": reference}).config
        assert [finding.result for finding in LocalBackend().examine(config) if finding.name == "secrets"] == [Result.FAILED]


def spec_of(**variables: object) -> JobSpec:
    config = job_config("/runs", environment=variables)
    return JobSpec(run_id=RunId("r"), name="r", config=config, code=CodeRef(digest="0"), versions={}, submitted_at="")
