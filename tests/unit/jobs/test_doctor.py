"""Whether a job could run: the backend's findings and the run store's, put together; nothing stays behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from launcher.backends.base import Finding, Result
from launcher.backends.local import checks as local_checks
from launcher.backends.local import ray_instance as local_ray
from launcher.core.errors import StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.store_check import check_store
from launcher.jobs import doctor
from launcher.jobspec.versions import installed_versions
from launcher.runtime.pod import probe
from tests.support.fakes import FakeBackend, job_config
from tests.support.stores import MemoryStore

pytestmark = pytest.mark.unit


def store_finding(runs: Path) -> Finding:
    return list(doctor.examine(job_config(runs)))[-1]


def test_the_backends_findings_come_first_and_the_run_store_after_them(backend: FakeBackend, tmp_path: Path) -> None:
    backend.findings = [Finding.ok("cluster", "there"), Finding.warning("GPUs", "none")]
    found = list(doctor.examine(job_config(tmp_path)))
    assert [finding.name for finding in found] == ["cluster", "GPUs", "run store from here"]
    assert (found[-1].result, found[-1].found) == (Result.OK, str(tmp_path))


@pytest.mark.parametrize("folder", ["", "new", "new/deep/runs"])
def test_trying_a_folder_leaves_it_as_it_was(backend: FakeBackend, tmp_path: Path, folder: str) -> None:
    assert store_finding(tmp_path / folder).result is Result.OK
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_says_so(backend: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = store_finding(tmp_path / "file" / "runs")
    assert (found.result, found.exit_code) == (Result.FAILED, ExitCode.INFRASTRUCTURE)
    assert found.fix


def test_a_scheme_that_nobody_speaks_is_a_mistake(backend: FakeBackend) -> None:
    *_, found = doctor.examine(job_config("ftp://host/runs"))
    assert (found.result, found.exit_code) == (Result.FAILED, ExitCode.USAGE)


def test_the_worst_finding_gives_the_exit_code() -> None:
    fine, mistake = Finding.warning("a", ""), Finding.failed("b", "", "", ExitCode.USAGE)
    assert doctor.worst([]) is ExitCode.SUCCEEDED
    assert doctor.worst([fine]) is ExitCode.SUCCEEDED
    assert doctor.worst([fine, mistake]) is ExitCode.USAGE
    assert doctor.worst([Finding.failed("c", "", ""), mistake]) is ExitCode.INFRASTRUCTURE


class Unfit(MemoryStore):
    """Overwrites, forgets or keeps, as told."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def create(self, key: str, data: bytes) -> bool:
        if self.fault == "overwrites":
            self.put(key, data)
            return True
        return super().create(key, data)

    def get(self, key: str) -> bytes:
        return b"other" if self.fault == "garbles" else super().get(key)

    def list(self, prefix: str) -> list:  # type: ignore[type-arg]
        return [] if self.fault == "lists nothing" else super().list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        if self.fault != "keeps":
            super().delete(keys)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("overwrites", "replace the first"), ("garbles", "read back"), ("lists nothing", "does not list"), ("keeps", "still has")],
)
def test_a_store_that_cannot_hold_runs_is_found_out(fault: str, says: str) -> None:
    with pytest.raises(StoreUnavailable, match=says):
        check_store(Unfit(fault))


def test_a_store_that_can_is_left_empty() -> None:
    store = MemoryStore()
    check_store(store)
    assert store.list("") == []


def test_the_probe_says_in_one_line_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report"
    assert probe.main([str(tmp_path / "runs"), "--report", str(report)]) == 0
    line = capsys.readouterr().out
    assert json.loads(line) == json.loads(report.read_text())
    assert json.loads(line) == {"versions": installed_versions(), "store": {"problem": "", "next": ""}}
    assert open_store(str(tmp_path / "runs")).list("") == []


def test_the_probe_answers_also_where_the_store_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["ftp://host/runs"]) == 0
    assert "no store speaks ftp" in json.loads(capsys.readouterr().out)["store"]["problem"]
    assert probe.main([]) == 0
    assert json.loads(capsys.readouterr().out)["store"] is None


# this machine


def test_this_machine_is_as_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "location", lambda: tmp_path / "ray")
    monkeypatch.setattr(local_ray, "folder", lambda: (tmp_path / "ray").mkdir(exist_ok=True) or tmp_path / "ray")
    found = list(local_checks.examine(job_config(tmp_path), lambda: 0))
    assert [finding.name for finding in found] == ["versions", "GPUs", "local Ray's folder", "local Ray"]
    assert {finding.result for finding in found} == {Result.OK}
    assert not (tmp_path / "ray").exists()


def test_the_last_failure_of_the_local_ray_is_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "location", lambda: tmp_path)
    monkeypatch.setattr(local_ray, "folder", lambda: tmp_path)
    (tmp_path / "error.txt").write_text("Traceback\nno space left\n")
    *_, found = local_checks.examine(job_config(tmp_path), lambda: 0)
    assert found.result is Result.WARNING
    assert "no space left" in found.found


def test_missing_packages_and_gpus_are_named(tmp_path: Path) -> None:
    assert "torch not installed" in local_checks.judge_versions({"python": "3.11", "ray": "2.60.0"}).found
    wanting = local_checks.judge_gpus(1, job_config(tmp_path, gpu=2))
    assert (wanting.result, wanting.exit_code) == (Result.FAILED, ExitCode.INFRASTRUCTURE)
    assert local_checks.judge_gpus(1, job_config(tmp_path, workers=2, resources__device="cuda")).result is Result.FAILED
    assert "on the CPU" in local_checks.judge_gpus(1, job_config(tmp_path, workers=2)).found
    assert local_checks.judge_gpus(0, job_config(tmp_path)).result is Result.OK


def test_a_driver_that_hangs_is_a_finding(tmp_path: Path) -> None:
    def hang() -> int:
        raise TimeoutError("nvidia-smi")

    found = {finding.name: finding for finding in local_checks.examine(job_config(tmp_path), hang)}
    assert found["GPUs"].result is Result.FAILED


def test_a_variable_that_the_command_lacks_is_found(backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    found = next(iter(doctor.examine(job_config(tmp_path, environment={"DATA_ROOT": None}))))
    assert (found.name, found.result, found.exit_code) == ("environment", Result.FAILED, ExitCode.USAGE)
    assert "environment.DATA_ROOT=VALUE" in found.fix
