"""What survives a kill: nothing that was committed is lost, and the state that is told is true."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.test_main_job import assert_ledger_is_exact
from tests.support.jobs import Project, kill

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def pids(status: dict[str, object]) -> list[int]:
    return [member["pid"] for member in status["members"]]  # type: ignore[index, attr-defined]


def test_a_killed_controller_is_replaced_and_adopts_the_same_workers(project: Project) -> None:
    """Detached actors outlive their driver, and the next controller speaks with them again."""
    run = project.submit("workers=2", "trainer.steps=300", "checkpoint.every_steps=50")
    before = project.wait_for(run["run_id"], lambda status: status["step"] >= 10)
    killed_at = time.monotonic()
    kill(project.processes(run)["controller"])
    adopted = project.wait_for(run["run_id"], lambda status: status["term"] > before["term"] and status["step"] > before["step"])
    assert time.monotonic() - killed_at < 10.0, "the promise of the design"
    assert pids(adopted) == pids(before)
    assert (adopted["generation"], adopted["steps_lost"]) == (before["generation"], 0)
    ended = project.wait_for_end(run["run_id"])
    assert (ended["state"], ended["step"], ended["steps_lost"], ended["samples_repeated"]) == ("SUCCEEDED", 300, 0, 0)
    assert_ledger_is_exact(project.events(run["run_id"]), 300)


@pytest.fixture
def elsewhere(project: Project) -> Iterator[Project]:
    """The same runs, looked at by somebody with another folder for the local Ray: as on another machine."""
    folder = Path(tempfile.mkdtemp(prefix="e", dir="/tmp"))  # short: Ray's sockets would lie in it
    yield Project(project.folder, folder, project.runs)
    shutil.rmtree(folder)


def kill_everything(project: Project, run: dict[str, object], status: dict[str, object]) -> None:
    processes = project.processes(run)
    for pid in (processes["supervisor"], processes["controller"], *pids(status)):
        kill(pid)


def test_after_a_kill_of_everything_the_truth_is_told_at_once_and_resume_goes_on(project: Project, elsewhere: Project) -> None:
    """Where its processes can be seen: at once. Elsewhere, where only the store can be asked: within a lease."""
    run = project.submit("workers=2", "trainer.steps=300", "checkpoint.every_steps=10")
    before = project.wait_for(run["run_id"], lambda status: status["step"] >= 25)
    assert elsewhere.status(run["run_id"])["state"] == "RUNNING"
    kill_everything(project, run, before)
    assert elsewhere.json("status", run["run_id"], "--runs", project.runs)["state"] == "LOST"
    dead = project.json("status", run["run_id"], "--runs", project.runs)
    assert (dead["state"], dead["exit_code"]) == ("FAILED", 1)
    assert "gone" in dead["reason"]
    assert dead["checkpoint"]["step"] >= 20
    assert [each["state"] for each in project.json("ls", "--runs", project.runs)] == ["FAILED"]
    goal = dead["step"] + 20
    ended = project.json("resume", run["run_id"], f"trainer.steps={goal}", "--runs", project.runs)
    assert (ended["state"], ended["step"]) == ("SUCCEEDED", goal)
    assert ended["steps_lost"] == dead["step"] - dead["checkpoint"]["step"]
    assert_ledger_is_exact(project.events(run["run_id"]), goal)


def test_a_damaged_chunk_is_noticed_and_the_checkpoint_before_is_used(project: Project) -> None:
    first = project.train("name=hurt", "trainer.steps=30", "checkpoint.keep=5")
    blobs = Path(project.runs) / first["run_id"] / "blobs"
    newest = max(blobs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    ended = project.json("resume", "hurt", "trainer.steps=40", "--runs", project.runs)
    assert (ended["state"], ended["step"], ended["steps_lost"]) == ("SUCCEEDED", 40, 10)
    corrupt = [event for event in project.events("hurt") if event["kind"] == "checkpoint_corrupt"]
    assert_ledger_is_exact(project.events("hurt"), 40)
    assert len(corrupt) <= 1
