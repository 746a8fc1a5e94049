"""A worker that ends without a word: how it did is told, by the signal or the exit code and its own last lines."""

from __future__ import annotations

import time

import pytest

from tests.support.jobs import HANG_S, POLL_S, Project

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MODEL = """
import ctypes
import os
import signal
import sys

from models.slow import Slow, taken

ENDS = {
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Ends(Slow):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def forward(self, images):
        for name, end in ENDS.items():
            if self.training and taken(os.path.join(self.folder, name)):
                print(f"about to end by {name}", file=sys.stderr, flush=True)
                end()
        return super().forward(images)
"""


def test_how_a_worker_ended_is_told_with_its_last_lines(project: Project) -> None:
    (project.folder / "models" / "ends.py").write_text(MODEL)
    (project.folder / "configs" / "model" / "ends.yaml").write_text("_target_: models.ends.Ends\nfolder: ???\n")
    run = project.submit("workers=1..4", "model=ends", f"model.folder={project.folder}", "trainer.steps=100000")
    began = project.wait_for(run["run_id"], lambda status: status["world_size"] == 4 and status["step"] > 5)
    for name in ("segfault", "exit", "kill"):
        (project.folder / name).touch()
    deadline = time.monotonic() + HANG_S
    while len(died := [event for event in project.events(run["run_id"]) if event["kind"] == "worker_died"]) < 3:
        assert time.monotonic() < deadline, died
        time.sleep(POLL_S)
    project.json("stop", run["run_id"], "--runs", project.runs)
    members = {member["id"]: member for member in began["members"]}
    for event in died:
        member = members[event["worker"]]
        assert (event["rank"] is None, event["pid"], event["node"]) == (False, member["pid"], member["node"])
    by_end = {line.rpartition(" ")[2]: event for event in died for line in event["last_lines"] if line.startswith("about to end by ")}
    assert by_end["segfault"]["detail"].startswith(("SIGSEGV", "a fatal error: Segmentation fault"))
    assert by_end["exit"]["detail"].startswith(("exit code 0", "it ended without a word"))
    assert by_end["kill"]["detail"].startswith(("SIGKILL", "it ended without a word"))
    assert not any(
        "launcher_exit_code" in line for line in project.launch("logs", run["run_id"], "--runs", project.runs).stdout.splitlines()
    )
