import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import jobs
from launcher.cli import watch
from launcher.cli.hydra_verbs import VerbOptions, read_options
from launcher.cli.main import main
from launcher.config.schema import JobConfig
from launcher.core.errors import StoreUnavailable, UsageError

pytestmark = pytest.mark.unit
Calls = list[tuple[str, Any, str]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LAUNCHER_RUNS", "HYDRA_FULL_ERROR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the verbs asked for; a job's exit code is its seed."""
    made: Calls = []

    def submit(config: JobConfig, *, folder: Path, tell: Callable[[str], object]) -> Any:
        assert folder == Path.cwd()
        tell(f"told of {config.seed}")
        made.append(("submit", config.seed, ""))
        return SimpleNamespace(name="run", seed=config.seed)

    def watched(kind: str) -> Callable[..., int]:
        def act(ref: Any, *, output: str) -> int:
            made.append((kind, ref.seed, output))
            return int(ref.seed) if kind == "follow" else 0

        return act

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(watch, "follow", watched("follow"))
    monkeypatch.setattr(watch, "submitted", watched("submitted"))
    return made


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("-d model=mlp", VerbOptions(("model=mlp",), detach=True)),
        ("model=mlp --detach", VerbOptions(("model=mlp",), detach=True)),
        ("-o json seed=1", VerbOptions(("seed=1",), output="json")),
        ("seed=1 -ojson", VerbOptions(("seed=1",), output="json")),
        ("seed=1 --output=text -m", VerbOptions(("seed=1", "-m"))),
        ("-cd folder -m seed=1 -d", VerbOptions(("-cd", "folder", "-m", "seed=1"), detach=True)),
        ("seed=1 -- -d", VerbOptions(("seed=1", "-d"))),
        ("", VerbOptions()),
    ],
)
def test_our_options_are_taken_out_wherever_they_stand(arguments: str, options: VerbOptions) -> None:
    assert read_options(arguments.split()) == options


@pytest.mark.parametrize("arguments", [["-o"], ["-o", "yaml"], ["--output="]])
def test_a_form_of_output_that_does_not_exist_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="no such form"):
        read_options(arguments)


def test_train_submits_and_follows_and_returns_how_the_job_ended(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "+model=mlp", "seed=3", "-o", "json"]) == 3
    assert calls == [("submit", 3, ""), ("follow", 3, "json")]
    said = capsys.readouterr()
    assert ("told of 3" in said.err, "told of 3" in said.out) == (True, False)


def test_detached_it_says_what_was_submitted(calls: Calls) -> None:
    assert main(["train", "-d", "seed=3"]) == 0
    assert calls == [("submit", 3, ""), ("submitted", 3, "text")]


def test_a_sweep_runs_one_job_after_the_other_and_returns_the_worst(calls: Calls) -> None:
    assert main(["train", "-m", "seed=1,4,0"]) == 4
    assert [(kind, seed) for kind, seed, _ in calls] == [
        ("submit", 1),
        ("follow", 1),
        ("submit", 4),
        ("follow", 4),
        ("submit", 0),
        ("follow", 0),
    ]


def test_who_leaves_a_sweep_starts_nothing_more(calls: Calls) -> None:
    assert main(["train", "-m", "seed=130,1"]) == 130
    assert [kind for kind, _, _ in calls] == ["submit", "follow"]


def test_a_detached_sweep_submits_all(calls: Calls) -> None:
    assert main(["train", "-d", "-m", "seed=1,2"]) == 0
    assert [kind for kind, _, _ in calls] == ["submit", "submitted"] * 2


def test_one_name_for_several_jobs_is_refused_before_the_first_starts(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "seed=1,2", "name=same"]) == 2
    assert "several jobs cannot have one name" in capsys.readouterr().err
    assert calls == []


def test_nothing_starts_when_one_job_of_a_sweep_is_wrong(calls: Calls) -> None:
    assert main(["train", "-m", "workers=1,99"]) == 2
    assert calls == []


def test_an_error_of_the_store_has_its_own_exit_code(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def submit(config: JobConfig, **options: object) -> Any:
        raise StoreUnavailable("the disk is full", where="runs", given=config.runs)

    monkeypatch.setattr(jobs, "submit", submit)
    assert main(["train"]) == 4
    assert capsys.readouterr().err == "error: the disk is full\n  where:    runs\n  given:    ./runs\n"


def test_a_plan_cannot_be_detached(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-d"]) == 2
    assert "--detach" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--cfg=job", "--cfg=hydra", "--cfg=all", "--help", "--hydra-help", "--version", "--info=searchpath", "--info"]
)
def test_hydra_flags_print_and_start_nothing(calls: Calls, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["train", "+model=mlp", flag, "-d"]) == 0
    shown = capsys.readouterr()
    assert shown.out
    assert "Traceback" not in shown.err
    assert calls == []
    assert os.listdir() == []


def test_cfg_shows_a_package_and_resolves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_RUNS", "/somewhere")
    assert main(["train", "--cfg", "job", "--package", "trainer", "+trainer.steps=3"]) == 0
    assert capsys.readouterr().out.startswith("# @package trainer\nsteps: 3\nepochs: null\n")
    assert main(["train", "--cfg", "job", "--resolve", "workers=1..4"]) == 0
    shown = capsys.readouterr().out
    assert "runs: /somewhere\n" in shown
    assert "workers: 1..4\n" in shown


def test_help_lists_groups_and_our_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("launch plan:")
    assert [part for part in ("model: mlp, resnet", "-o, --output", "--multirun", "trainer:") if part not in shown] == []


def test_the_full_error_of_hydra_can_be_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["train", "model=nothing"]) == 2
    assert "MissingConfigException" in capsys.readouterr().err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_real_command_reports_a_typing_error_on_stderr_alone_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher", "train", "trainer.stepz=5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean steps?" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_the_path_to_a_configuration_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from launcher.cli.main import main; assert main(['train', '--cfg', 'job']) == 0; "
        "print(sorted({'torch', 'ray', 'obstore', 'rich', 'click', 'wandb', 'numpy', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
