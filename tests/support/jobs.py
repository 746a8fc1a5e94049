"""Whole jobs for tests: a project folder of a user's own, the real command in processes of its own, and faults by pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import launcher
from launcher.core.process import ProcessRef

UNNAMED = "SET_BY_EVERY_COMMAND"
"""A variable that no job names: also the command that starts the local Ray has it."""
HANG_S = 180.0
POLL_S = 0.1

SLOW_MODEL = '''
import os
import time

import torch
from torch import nn


def taken(path):
    """True in one process alone, once after the file has come."""
    try:
        os.rename(path, path + ".taken")
    except FileNotFoundError:
        return False
    return True


class Slow(nn.Module):
    """Takes its time, so that a test can catch it at work; BatchNorm and Dropout, so that there is state to get wrong."""

    def __init__(self, pause_s: float = 0.03, fail_at: int = -1, fail_once_for: str = "", classes: int = 10):
        super().__init__()
        self.pause_s, self.fail_at, self.fail_once_for, self.calls = pause_s, fail_at, fail_once_for, 0
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, classes)
        )

    def forward(self, images):
        self.calls += 1
        if self.training:
            time.sleep(self.pause_s)
        if self.training and self.fail_once_for and taken(self.fail_once_for):
            raise ZeroDivisionError("a mistake that only one process makes")
        if 0 <= self.fail_at < self.calls:
            raise ZeroDivisionError("a mistake in the user's model")
        return self.layers(images)
'''

SLOW_CONFIG = """\
_target_: models.slow.Slow
pause_s: 0.03
fail_at: -1
fail_once_for: ""
classes: 10
"""


@dataclass
class Project:
    """A user's folder with models/ and configs/ of his own, runs beside it, and a local Ray that the tests share."""

    folder: Path
    ray_folder: Path
    runs: str
    environment: dict[str, str] = field(default_factory=dict)

    def launch(self, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; `check` is the exit code it must have (None: any)."""
        done = subprocess.run(
            self._command(arguments), cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=HANG_S, check=False
        )
        if check is not None:
            assert done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command(arguments), cwd=self.folder, env=self._environment(), text=True, **options)

    def json(self, *arguments: str, check: int | None = 0) -> Any:
        return json.loads(self.launch(*arguments, "-o", "json", check=check).stdout)

    def train(self, *overrides: str, check: int | None = 0) -> Any:
        """A job of the slow model to its end; gives the one JSON object."""
        return self.json("train", *self.job(*overrides), check=check)

    def submit(self, *overrides: str) -> Any:
        return self.json("train", "-d", *self.job(*overrides))

    def job(self, *overrides: str) -> list[str]:
        # Later words win in Hydra's grammar only when the earlier one is not there: so defaults yield to what is given.
        given = {word.partition("=")[0].lstrip("+") for word in overrides}
        defaults = {
            "model": "slow",
            "tracking": "none",
            "runs": self.runs,
            "trainer.epochs": "null",
            "trainer.steps": "40",
            "trainer.log_every_steps": "5",
            "checkpoint.every_steps": "10",
            "scheduler": "none",
        }
        return [*(f"{key}={value}" for key, value in defaults.items() if key not in given), *overrides]

    def status(self, run: str) -> Any:
        """What `launch status -o json` prints, without a process for each look: one would take a third of a second from the job."""
        with self._place():
            return _through_json(launcher.attach(run, self.runs).status().to_json())

    def events(self, run: str) -> list[Any]:
        """What `launch events -o json` prints."""
        with self._place():
            return _through_json(list(launcher.attach(run, self.runs).events()))

    def wait_for(self, run: str, condition: Callable[[Any], bool]) -> Any:
        """Poll the status until the condition holds; ends at once when the run has ended without it."""
        deadline = time.monotonic() + HANG_S
        while True:
            status = self.status(run)
            if condition(status):
                return status
            assert status["state"] not in ("FAILED", "STOPPED", "SUCCEEDED"), status
            assert time.monotonic() < deadline, status
            time.sleep(POLL_S)

    def wait_for_end(self, run: str) -> Any:
        return self.wait_for(run, lambda status: status["state"] in ("FAILED", "STOPPED", "SUCCEEDED"))

    @contextmanager
    def _place(self) -> Iterator[None]:
        """The environment of the project's commands, for the same without a command."""
        with mock.patch.dict(os.environ, self._environment(), clear=True):
            yield

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "launcher", *arguments]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "LAUNCHER_", "RAY_"))}
        return {**inherited, "LAUNCHER_RAY_DIR": str(self.ray_folder), "NO_COLOR": "1", UNNAMED: "1", **self.environment}

    def stop_all(self) -> None:
        """What a failed test left running would slow down all that follow."""
        for record in (self.ray_folder / "jobs").glob("*.json"):
            document = json.loads(record.read_text())
            if document["runs"].startswith(self.runs) and ProcessRef.of(document["supervisor"]["pid"]).alive():
                self.launch("stop", document["run_id"], "--runs", self.runs, check=None)

    def processes(self, run: dict[str, Any]) -> dict[str, int]:
        """The supervisor and the controller of a run, by the records that the local backend keeps."""
        for record in (self.ray_folder / "jobs").glob("*.json"):
            document = json.loads(record.read_text())
            if document["run_id"] == run["run_id"]:
                controller = json.loads(record.with_suffix(".controller").read_text())
                return {"supervisor": document["supervisor"]["pid"], "controller": controller["pid"]}
        raise AssertionError(f"no record of {run['run_id']}")


def _through_json(value: object) -> Any:
    return json.loads(json.dumps(value))


def kill(pid: int, sign: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sign)


def tell_variables(project: Project, *names: str) -> None:
    """Let the model print these environment variables, as JSON on one line, when it is imported."""
    model = project.folder / "models" / "slow.py"
    told = "print('variables', json.dumps({name: os.environ.get(name) for name in " + repr(names) + "}), flush=True)"
    model.write_text(f"import json\n{model.read_text()}\n\n{told}\n")


def told_variables(project: Project, run: str) -> list[dict[str, str | None]]:
    """What `tell_variables` let each worker print."""
    lines = project.launch("logs", run, "--runs", project.runs, "-o", "json").stdout.splitlines()
    return [json.loads(line["line"].removeprefix("variables ")) for line in map(json.loads, lines) if line["line"].startswith("variables ")]


def write_project(folder: Path) -> None:
    for path, text in (("models/slow.py", SLOW_MODEL), ("configs/model/slow.yaml", SLOW_CONFIG)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@contextmanager
def project_in(folder: Path, ray_folder: Path) -> Iterator[Project]:
    """A project with its runs beside it; none of its jobs outlives the block."""
    write_project(folder / "project")
    made = Project(folder / "project", ray_folder, str(folder / "runs"))
    yield made
    made.stop_all()


@contextmanager
def ray_of_its_own() -> Iterator[Path]:
    """A folder for a local Ray that nobody else uses; what was started there is ended by its own records."""
    folder = Path(tempfile.mkdtemp(prefix="l", dir="/tmp"))
    try:
        yield folder
    finally:
        from launcher.backends.local import ray_instance
        from launcher.backends.local.supervisors import living_processes

        for process in living_processes(folder):
            process.end(grace_s=1.0)
        ray_instance.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)
