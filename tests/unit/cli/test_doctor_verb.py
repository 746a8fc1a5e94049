"""`launch doctor`: a line for each check, JSON for a script, the worst as exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.base import Finding
from launcher.cli.main import main
from launcher.config.schema import JobConfig
from launcher.core.exit_codes import ExitCode
from launcher.jobs import doctor

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.chdir(tmp_path)
    for name in ("LAUNCHER_RUNS", "HYDRA_FULL_ERROR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    told = [Finding.ok("cluster", "there"), Finding.warning("GPUs", "none\nto be seen")]

    def examine(config: JobConfig) -> Iterator[Finding]:
        yield from told

    monkeypatch.setattr(doctor, "examine", examine)
    return told


def test_every_check_is_a_line_and_warnings_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "seed=3"]) == 0
    cluster, gpus = capsys.readouterr().out.splitlines()
    assert cluster.split() == ["ok", "cluster", "there"]
    assert gpus.split() == ["warning", "GPUs", "none", "to", "be", "seen"]


def test_a_failure_says_what_to_do_and_gives_the_exit_code(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings.append(Finding.failed("secret", "there is none", "make one", ExitCode.USAGE))
    assert main(["doctor"]) == 2
    *_, line, fix = capsys.readouterr().out.splitlines()
    assert line.startswith("FAILED   secret")
    assert fix.strip() == "fix: make one"
    findings.append(Finding.failed("cluster", "gone", "wait"))
    assert main(["doctor"]) == 4


def test_json_is_one_list(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings.append(Finding.failed("secret", "there is none", "make one", ExitCode.USAGE))
    assert main(["doctor", "-o", "json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told[0] == {"name": "cluster", "result": "ok", "found": "there", "fix": ""}
    assert told[2] == {"name": "secret", "result": "failed", "found": "there is none", "fix": "make one"}


@pytest.mark.parametrize("words", [["-d"], ["-m", "seed=1,2"], ["no_such_key=1"]])
def test_words_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().out == ""


def test_its_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "launch doctor: check that a job" in capsys.readouterr().out
