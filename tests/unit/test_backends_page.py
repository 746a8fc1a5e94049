"""docs/backends.md is run as it stands; ssh answers what a machine would."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from launcher.backends.base import Backend, Owner, Result, open_backend
from launcher.config import describe
from launcher.config.load import compose
from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.core.store import open_store
from launcher.core.types import RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.versions import installed_versions
from launcher.record.run_store import RunStore
from tests.support import backends_page

pytestmark = pytest.mark.unit


@dataclass
class FakeSsh:
    """In the place of subprocess.run: answers the commands whose text has one of these words."""

    answers: dict[str, str] = field(default_factory=dict)
    code: int = 0
    said: list[list[str]] = field(default_factory=list)

    def __call__(self, line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.said.append(line)
        answer = next((answer for words, answer in self.answers.items() if words in line[-1]), "")
        return subprocess.CompletedProcess(line, self.code, answer, "as ssh says it")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ModuleType]:
    with backends_page.loaded(tmp_path) as module:
        yield module


@pytest.fixture
def ssh(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    fake = FakeSsh({"nvidia-smi": "GPU 0: H100\nGPU 1: H100\n"})
    monkeypatch.setattr(page.subprocess, "run", fake)
    return fake


@pytest.fixture
def config(page: ModuleType, tmp_path: Path) -> JobConfig:
    """What the page's command composes."""
    [command] = re.findall(r"^```sh\n(launch train .*)\n```$", backends_page.PAGE, re.MULTILINE)
    return compose(shlex.split(command)[2:], folder=tmp_path)


@pytest.fixture
def spec(config: JobConfig) -> JobSpec:
    return JobSpec(run_id=RunId("mlp-abcdef"), name="mlp", config=config, code=CodeRef(digest="0"), versions={}, submitted_at="")


@pytest.fixture
def run(spec: JobSpec, tmp_path: Path) -> RunStore:
    run = RunStore(open_store(str(tmp_path / "runs"), create=True), spec.run_id)
    run.store.put(run.key("spec-1.json"), json.dumps(spec.to_json()).encode())
    return run


@pytest.fixture
def backend(page: ModuleType, ssh: FakeSsh) -> Backend:
    return open_backend("ssh")


def test_the_configuration_is_what_the_page_shows(page: ModuleType, config: JobConfig) -> None:
    assert isinstance(config.backend, page.SshConfig)
    assert (config.backend.host, config.backend.setup) == ("gpu-7", "true")
    with pytest.raises(ConfigError, match="no host"):
        page.SshConfig(host="-oProxyCommand=true")
    shown = backends_page.FILES[backends_page.CHOICE]
    assert [f"{key.name}: {'ssh' if key.name == 'name' else key.default}" in shown for key in describe.keys_of(page.SshConfig)] == [
        True
    ] * 3


def test_a_job_fits_on_the_gpus_of_the_machine(backend: Backend, ssh: FakeSsh, spec: JobSpec) -> None:
    placement = backend.place(spec)
    assert (placement.fits, placement.workers, placement.gpu_per_worker, placement.device) == (True, 2, 1, "cuda")
    assert ssh.said[0][:-1] == ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "gpu-7"]
    ssh.answers["nvidia-smi"] = ""
    refused = backend.place(spec)
    assert (refused.fits, refused.workers) == (False, 0)
    assert "gpu-7 has 0" in refused.reason


def test_a_folder_of_this_machine_is_refused(backend: Backend, spec: JobSpec, config: JobConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        backend.place(replace(spec, config=replace(config, runs=str(tmp_path))))
    assert caught.value.where == "runs"


def test_a_launch_ends_what_was_there_and_starts_the_supervisor(backend: Backend, ssh: FakeSsh, spec: JobSpec, run: RunStore) -> None:
    backend.announce(run)
    backend.launch(spec, run)
    removed, launched = (line[-1] for line in ssh.said)
    assert "kill -s TERM" in removed
    assert f"python -m launcher.runtime.supervisor --runs {run.store.uri} --run-id mlp-abcdef --state /tmp/launcher --ray auto" in launched


@pytest.mark.parametrize("owner", Owner)
def test_the_machine_knows_whether_the_run_lives(backend: Backend, ssh: FakeSsh, run: RunStore, owner: Owner) -> None:
    ssh.answers["echo alive"] = f"{owner.value}\n"
    assert backend.owner(run) is owner


def test_what_cannot_be_reached_is_said_and_not_guessed(backend: Backend, ssh: FakeSsh, spec: JobSpec, run: RunStore) -> None:
    ssh.code = 255
    assert backend.owner(run) is Owner.UNKNOWN
    assert "cannot be reached" in backend.reason_pending(run)
    assert backend.last_words(run) == ""
    assert "could not be ended" in backend.remove(run)
    assert backend.dashboard(run) is None
    with pytest.raises(BackendUnavailable) as caught:
        backend.place(spec)
    assert (caught.value.where, caught.value.given) == ("backend.host=gpu-7", "as ssh says it")
    with pytest.raises(BackendUnavailable, match="earlier start"):
        backend.launch(spec, run)


def test_a_run_that_starts_and_one_that_ended_have_their_words(backend: Backend, ssh: FakeSsh, run: RunStore) -> None:
    assert backend.reason_pending(run) == "the controller is starting"
    ssh.answers["tail -c 1000"] = "No module named launcher\n"
    assert backend.last_words(run) == "No module named launcher"
    assert backend.remove(run) == ""


def test_an_examination_has_a_finding_for_each_thing(backend: Backend, ssh: FakeSsh, config: JobConfig) -> None:
    report = {"versions": installed_versions(), "store": {"problem": "", "next": ""}}
    ssh.answers["launcher.runtime.pod.probe s3://bucket/runs"] = json.dumps(report)
    found = {finding.name: finding.result for finding in backend.examine(config)}
    assert found == {"machine": Result.OK, "versions there": Result.OK, "run store from there": Result.OK}
    wrong = {"versions": {**installed_versions(), "torch": "1.0"}, "store": {"problem": "no such bucket", "next": "make it"}}
    ssh.answers["launcher.runtime.pod.probe s3://bucket/runs"] = json.dumps(wrong)
    assert [finding.result for finding in backend.examine(config)] == [Result.OK, Result.FAILED, Result.FAILED]
    ssh.answers["launcher.runtime.pod.probe s3://bucket/runs"] = "hello"
    (finding,) = backend.examine(config)
    assert "hello" in finding.found
    ssh.code = 255
    (finding,) = backend.examine(config)
    assert finding.result is Result.FAILED
