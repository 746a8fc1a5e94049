"""Workers join, leave, freeze, fail and die while the job goes on: the same processes, no committed step lost, each sample once.

Starting workers is what takes time, so one job goes through all of it, a test at a time. Each test asks for the size that it begins with and
looks at what was recorded since; alone, or after a test that failed, it begins a job of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.core.process import ProcessRef
from tests.ray.test_main_job import assert_ledger_is_exact
from tests.support.jobs import HANG_S, POLL_S, Project, kill, project_in

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

RUNNING = "RUNNING"


def pids(status: Any) -> list[int]:
    return [member["pid"] for member in status["members"]]


def begin(project: Project, workers: str, *overrides: str) -> tuple[Any, Any]:
    """A job that trains until it is stopped, at its full size."""
    size = int(workers.rpartition(".")[2])
    run = project.submit(f"workers={workers}", "trainer.steps=100000", "checkpoint.every_steps=20", "elastic.cooldown_s=0", *overrides)
    return run, project.wait_for(run["run_id"], lambda status: status["world_size"] == size and status["step"] >= 10)


def stop(project: Project, run: Any, lost: tuple[int, int] = (0, 0)) -> Any:
    """The end of a job whose record must be whole: no step lost and no sample repeated but these, nothing twice."""
    ended = project.json("stop", run["run_id"], "--runs", project.runs)
    assert ended["state"] == "STOPPED", ended["reason"]
    assert (ended["steps_lost"], ended["samples_repeated"]) == lost
    assert_ledger_is_exact(project.events(run["run_id"]), ended["step"])
    return ended


def resize(project: Project, run: Any, size: str) -> Any:
    project.launch("resize", run["run_id"], size, "--runs", project.runs)
    return project.status(run["run_id"])


def trains_with(size: int, after: Any) -> Any:
    def condition(status: Any) -> bool:
        return status["state"] == RUNNING and status["world_size"] == size and status["step"] > after["step"] + 5

    return condition


def in_another_generation(before: Any) -> Any:
    return lambda status: status["generation"] > before["generation"] and status["state"] == RUNNING


class SharedJob:
    """A job that trains until it is stopped, and what a test sees of it from when it took it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.mistake = project.folder / "mistake"
        """When this file comes, one worker's model fails, once."""
        self.notice = project.folder / "notice"
        self.lost = (0, 0)
        """Steps lost and samples repeated so far, where a test meant to."""
        self._run: Any = None
        self._runs = False
        self.taken = False
        self._since = ""

    def take(self, workers: str) -> Any:
        """Its status when it trains with as many workers as these bounds allow."""
        if self.taken:  # the test before did not come to its end
            self._give_up()
        if self._runs:
            status = resize(self.project, self._run, workers)
            status = self.wait_for(trains_with(int(workers.rpartition(".")[2]), status))
        else:
            own = (f"model.fail_once_for={self.mistake}", f"elastic.notice_file={self.notice}")
            self._run, status = begin(self.project, workers, *own)
        self._runs = self.taken = True
        written = self._record(status["step"])[-1]
        self._since = written["time"]
        # Everything is written together with a checkpoint; what comes next is to come between two.
        return self.wait_for(lambda status: status["step"] > written["step"] + 5)

    def leave(self) -> None:
        """The record up to now must be whole: nothing lost that was not meant to be, nothing twice."""
        status = self.status()
        assert (status["steps_lost"], status["samples_repeated"]) == self.lost
        events = self._record(status["step"])
        assert_ledger_is_exact(events, [event["last"] for event in events if event["kind"] == "steps"][-1])
        self.taken = False

    def stop(self) -> None:
        """Its end, after which the whole record must be so."""
        if self._runs:
            stop(self.project, self._run, self.lost)
        self._runs, self.taken, self.lost = False, False, (0, 0)

    def status(self) -> Any:
        return self.project.status(self._run["run_id"])

    def wait_for(self, condition: Callable[[Any], bool]) -> Any:
        return self.project.wait_for(self._run["run_id"], condition)

    def resize(self, size: str) -> Any:
        return resize(self.project, self._run, size)

    def resize_at_leisure(self, size: str) -> None:
        self.project.launch("resize", self._run["run_id"], size, "--no-wait", "--runs", self.project.runs)

    def events(self, kind: str) -> list[Any]:
        """Those of a kind that were recorded since the test took the job."""
        return [event for event in self.project.events(self._run["run_id"]) if event["kind"] == kind and event["time"] > self._since]

    def kill_controller(self) -> None:
        kill(self.project.processes(self._run)["controller"])

    def _record(self, step: int) -> list[Any]:
        """All events once those of this step are written; they are written in their order."""
        deadline = time.monotonic() + HANG_S
        while True:
            events = self.project.events(self._run["run_id"])
            if any(event["kind"] == "steps" and event["last"] >= step for event in events):
                return events
            assert time.monotonic() < deadline, events
            time.sleep(POLL_S)

    def _give_up(self) -> None:
        self.project.stop_all()
        for file in (self.mistake, self.notice):
            file.unlink(missing_ok=True)
        self._runs, self.taken, self.lost = False, False, (0, 0)


@pytest.fixture(scope="module")
def job(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedJob]:
    with project_in(tmp_path_factory.mktemp("elastic"), ray_folder) as project:
        shared = SharedJob(project)
        yield shared
        if not shared.taken:  # the test that failed has said enough
            shared.stop()


def test_below_the_minimum_the_state_is_saved_and_held_until_capacity_is_back(job: SharedJob) -> None:
    before = job.take("2..2")
    kill(pids(before)[1])
    whole = job.wait_for(trains_with(2, before))
    assert pids(whole)[0] == pids(before)[0]
    job.leave()
    held = next(event for event in job.events("generation_formed") if event["held"])
    back = next(event for event in job.events("generation_formed") if event["generation"] > held["generation"])
    saved = [event["checkpoint_step"] for event in job.events("checkpoint_committed") if event["time"] <= back["time"]]
    assert any(step >= held["step"] for step in saved), "the held state was saved, before there was capacity again"


def test_a_job_grows_and_shrinks_while_its_processes_stay(job: SharedJob) -> None:
    before = job.take("1..3")
    small = job.resize("1")
    assert pids(small) == pids(before)[:1], "the first rank stays"
    small = job.wait_for(trains_with(1, small))
    large = job.resize("3")
    assert (large["world_size"], pids(large)[0]) == (3, pids(before)[0])
    larger = job.resize("2..4")
    assert (larger["world_size"], pids(larger)[:3]) == (4, pids(large))
    assert job.wait_for(trains_with(4, larger))["last_change"]["to_size"] == 4
    job.leave()
    changes = job.events("resized")
    assert [(change["from_size"], change["to_size"]) for change in changes] == [(3, 1), (1, 3), (3, 4)]
    for change in changes:
        assert change["pause_s"] is not None
        assert change["total_s"] >= change["first_step_s"] > 0
    gone = set(pids(before)[1:])
    assert not any(ProcessRef.of(pid).alive() for pid in gone), "who left has ended"


def test_killed_workers_cost_no_committed_step(job: SharedJob) -> None:
    """The first rank, the last one, two at once: the others go on as the same processes, and new ones take the places."""
    before = job.take("1..4")
    for victims in ([0], [3], [0, 1]):
        for rank in victims:
            kill(pids(before)[rank])
        survivors = [pid for rank, pid in enumerate(pids(before)) if rank not in victims]
        after = job.wait_for(in_another_generation(before))
        assert pids(after)[: len(survivors)] == survivors
        before = job.wait_for(trains_with(4, after))
        assert pids(before)[: len(survivors)] == survivors
    job.leave()


def test_a_worker_killed_while_others_join(job: SharedJob) -> None:
    """The donor of the state dies in the middle of a change, wherever that is by then."""
    before = job.take("1..2")
    job.resize_at_leisure("1..4")
    while len(job.events("worker_ready")) < 2:
        time.sleep(0.05)
    kill(pids(before)[0])
    whole = job.wait_for(trains_with(4, before))
    assert pids(before)[1] in pids(whole)
    job.leave()


def test_a_frozen_worker_is_given_up_and_writes_nothing_when_it_wakes(job: SharedJob) -> None:
    before = job.take("2..3")
    frozen = pids(before)[1]
    kill(frozen, signal.SIGSTOP)
    after = job.wait_for(in_another_generation(before))
    assert frozen not in pids(after)
    kill(frozen, signal.SIGCONT)
    job.wait_for(trains_with(3, after))
    deadline = time.monotonic() + 30
    while ProcessRef.of(frozen).alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ProcessRef.of(frozen).alive()
    job.leave()


def test_an_exception_on_one_rank_costs_that_worker(job: SharedJob) -> None:
    before = job.take("2..3")
    job.mistake.touch()
    job.wait_for(lambda status: status["generation"] > before["generation"])
    after = job.wait_for(trains_with(3, before))
    job.leave()
    errors = job.events("worker_error")
    assert len(errors) == 1
    assert "ZeroDivisionError" in errors[0]["detail"]
    assert len(set(pids(after)) & set(pids(before))) == 2


def test_a_killed_controller_is_replaced_whatever_is_under_way(job: SharedJob) -> None:
    """In the middle of a change; and together with a worker, whose loss the next controller finds."""
    before = job.take("1..3")
    job.resize_at_leisure("2")
    job.kill_controller()
    small = job.wait_for(lambda status: status["term"] > before["term"] and trains_with(2, before)(status))
    assert set(pids(small)) < set(pids(before))
    kill(pids(small)[1])
    job.kill_controller()
    whole = job.wait_for(lambda status: status["term"] > small["term"] and trains_with(2, small)(status))
    assert pids(whole)[0] == pids(small)[0]
    assert pids(whole)[1] not in pids(before)
    job.leave()


def test_all_workers_lost_go_on_from_the_checkpoint(job: SharedJob) -> None:
    began = job.take("1..2")
    before = job.wait_for(lambda status: status["checkpoint"] is not None and status["step"] > began["step"] + 45)
    for pid in pids(before):
        kill(pid)
    after = job.wait_for(lambda status: status["term"] > before["term"] and trains_with(2, before)(status))
    base = next(event for event in job.events("term_started") if event["term"] == after["term"])
    assert base["checkpoint_step"] >= before["checkpoint"]["step"]
    assert after["steps_lost"] == base["steps_lost"] >= max(0, before["step"] - base["checkpoint_step"])
    assert after["samples_repeated"] == 64 * after["steps_lost"]
    job.lost = (after["steps_lost"], after["samples_repeated"])
    job.leave()


def test_notices_become_planned_shrinks(job: SharedJob) -> None:
    """SIGTERM to one worker, then a notice that takes the whole machine away: saved, and held until it goes."""
    before = job.take("1..3")
    kill(pids(before)[2], signal.SIGTERM)
    after = job.wait_for(in_another_generation(before))
    assert pids(before)[2] not in pids(after)
    whole = job.wait_for(trains_with(3, after))
    job.notice.write_text('{"deadline_s": 12}')
    held = job.wait_for(lambda status: status["state"] == "RESIZING" and "held" in status["reason"])
    assert held["step"] >= whole["step"]
    assert held["checkpoint"]["step"] == held["step"]
    job.stop()
    job.notice.unlink()
    assert job.events("resized")[0]["cause"] == "drain"
    assert not job.events("worker_lost")


def test_an_exception_that_comes_again_ends_the_job_with_the_traceback(project: Project) -> None:
    run = project.submit("workers=1..2", "trainer.steps=300", "model.fail_at=25", "trainer.fuse=on")
    ended = project.wait_for_end(run["run_id"])
    assert (ended["state"], ended["exit_code"]) == ("FAILED", 1)
    assert "ZeroDivisionError: a mistake in the user's model" in ended["reason"]
