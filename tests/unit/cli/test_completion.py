"""Completion, down to what a real bash offers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli.completion import SCRIPTS, candidates
from launcher.cli.main import main

pytestmark = pytest.mark.unit
ASK = r"""
source "$SCRIPT"
COMP_LINE="$1" COMP_POINT=${#1}
read -ra COMP_WORDS <<< "$1"
COMP_WORDS[0]="$LAUNCH"
_launch_completion
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAUNCHER_RUNS", raising=False)


def in_bash(tmp_path: Path, line: str, wordbreaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """What bash would put in the place of the last word of a line, or of what follows its last word break."""
    (tmp_path / "script").write_text(SCRIPTS["bash"])
    launch = tmp_path / "bin" / "launch"
    launch.parent.mkdir(exist_ok=True)
    launch.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
    launch.chmod(0o755)
    known = {"SCRIPT": str(tmp_path / "script"), "LAUNCH": str(launch), "PATH": os.environ["PATH"]}
    bash = shutil.which("bash")
    assert bash is not None
    program = f"COMP_WORDBREAKS=$WORDBREAKS\n{ASK}"
    command = [bash, "--norc", "--noprofile", "-c", program, "bash", line]
    done = subprocess.run(
        command, env={**known, "WORDBREAKS": wordbreaks}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("launch tr", ["train"]),
        ("launch train +model=m", ["mlp"]),
        ("launch train model=mlp trainer.st", ["trainer.steps="]),
        ("launch plan -o ", ["json", "text"]),
    ],
)
def test_a_real_bash_completes_verbs_choices_keys_and_options(tmp_path: Path, line: str, offered: list[str]) -> None:
    assert in_bash(tmp_path, line) == offered


def test_where_the_equals_sign_breaks_no_words_bash_gets_the_whole_word(tmp_path: Path) -> None:
    assert in_bash(tmp_path, "launch train +model=m", wordbreaks=" \t\n") == ["+model=mlp"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("launch", []),
        ("launch --v", ["--version"]),
        ("launch completion z", ["zsh"]),
        ("launch train --det", ["--detach"]),
        ("launch train --cfg ", ["all", "hydra", "job"]),
        ("launch train -d tracking=n", ["tracking=none"]),
        ("launch train 'model=r", []),
        ("launch stop --ru", ["--runs"]),
        ("launch nonsense ", []),
    ],
)
def test_candidates(line: str, offered: list[str]) -> None:
    assert [word for word in candidates(line) if line != "launch"] == offered


def test_every_verb_is_offered_and_no_option_until_it_is_begun() -> None:
    assert {"train", "plan", "ls", "resume", "completion"} <= set(candidates("launch "))
    assert not [word for word in candidates("launch ") if word.startswith("-")]


def test_names_of_runs_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for runs, name in (("runs", "first"), ("elsewhere", "fast"), ("third", "far")):
        (tmp_path / runs / "names").mkdir(parents=True)
        (tmp_path / runs / "names" / f"{name}.json").touch()
    assert candidates("launch status f") == ["first"]
    assert candidates("launch status --runs third f") == ["far"]
    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path / "elsewhere"))
    assert candidates("launch logs ") == ["fast"]
    assert candidates("launch resize --no-wait -o json f") == ["fast"]
    assert candidates("launch resize fast ") == []
    assert candidates("launch resize fast --no") == ["--no-wait"]
    monkeypatch.setenv("LAUNCHER_RUNS", "s3://bucket/runs")
    assert candidates("launch logs ") == []


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed_also_by_hydras_own_flag(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]
    assert main(["train", "--shell-completion", f"install={shell}"]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


def test_hydras_query_keeps_the_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "launch train model=m")
    assert main(["train", "-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == "model=mlp\n"


def test_a_shell_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
