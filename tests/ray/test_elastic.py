"""Workers join, leave, freeze, fail and die while the job goes on: the same processes, no committed step lost, each sample once."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.core.process import ProcessRef
from tests.ray.test_main_job import assert_ledger_is_exact
from tests.support.jobs import Project, kill

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

RUNNING = "RUNNING"


def pids(status: Any) -> list[int]:
    return [member["pid"] for member in status["members"]]


def begin(project: Project, workers: str, *overrides: str) -> tuple[Any, Any]:
    """A job that trains until it is stopped, at its full size."""
    size = int(workers.rpartition(".")[2])
    run = project.submit(f"workers={workers}", "trainer.steps=100000", "checkpoint.every_steps=40", "elastic.cooldown_s=0", *overrides)
    return run, project.wait_for(run["run_id"], lambda status: status["world_size"] == size and status["step"] >= 10)


def stop(project: Project, run: Any) -> Any:
    """The end of a job whose record must be whole: nothing lost, nothing twice."""
    ended = project.json("stop", run["run_id"], "--runs", project.runs)
    assert ended["state"] == "STOPPED", ended["reason"]
    assert (ended["steps_lost"], ended["samples_repeated"]) == (0, 0)
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


def test_a_job_grows_and_shrinks_while_its_processes_stay(project: Project) -> None:
    run, before = begin(project, "1..3")
    small = resize(project, run, "1")
    assert pids(small) == pids(before)[:1], "the first rank stays"
    small = project.wait_for(run["run_id"], trains_with(1, small))
    large = resize(project, run, "3")
    assert (large["world_size"], pids(large)[0]) == (3, pids(before)[0])
    larger = resize(project, run, "2..4")
    assert (larger["world_size"], pids(larger)[:3]) == (4, pids(large))
    project.wait_for(run["run_id"], trains_with(4, larger))
    ended = stop(project, run)
    assert ended["last_change"]["to_size"] == 4
    changes = [event for event in project.events(run["run_id"]) if event["kind"] == "resized"]
    assert [(change["from_size"], change["to_size"]) for change in changes] == [(3, 1), (1, 3), (3, 4)]
    for change in changes:
        assert change["pause_s"] is not None
        assert change["total_s"] >= change["first_step_s"] > 0
    gone = set(pids(before)[1:])
    assert not any(ProcessRef.of(pid).alive() for pid in gone), "who left has ended"


def test_killed_workers_cost_no_committed_step(project: Project) -> None:
    """The first rank, the last one, two at once: the others go on as the same processes, and new ones take the places."""
    run, before = begin(project, "1..4")
    for victims in ([0], [3], [0, 1]):
        for rank in victims:
            kill(pids(before)[rank])
        survivors = [pid for rank, pid in enumerate(pids(before)) if rank not in victims]
        after = project.wait_for(run["run_id"], in_another_generation(before))
        assert pids(after)[: len(survivors)] == survivors
        before = project.wait_for(run["run_id"], trains_with(4, after))
        assert pids(before)[: len(survivors)] == survivors
    stop(project, run)


def test_a_worker_killed_while_others_join(project: Project) -> None:
    """The donor of the state dies in the middle of a change, wherever that is by then."""
    run, before = begin(project, "1..2")
    project.launch("resize", run["run_id"], "1..4", "--no-wait", "--runs", project.runs)
    ready = lambda: sum(event["kind"] == "worker_ready" for event in project.events(run["run_id"]))  # noqa: E731
    while ready() < 4:
        time.sleep(0.05)
    kill(pids(before)[0])
    whole = project.wait_for(run["run_id"], trains_with(4, before))
    assert pids(before)[1] in pids(whole)
    stop(project, run)


def test_a_frozen_worker_is_given_up_and_writes_nothing_when_it_wakes(project: Project) -> None:
    run, before = begin(project, "2..3")
    frozen = pids(before)[1]
    kill(frozen, signal.SIGSTOP)
    after = project.wait_for(run["run_id"], in_another_generation(before))
    assert frozen not in pids(after)
    kill(frozen, signal.SIGCONT)
    project.wait_for(run["run_id"], trains_with(3, after))
    deadline = time.monotonic() + 30
    while ProcessRef.of(frozen).alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ProcessRef.of(frozen).alive()
    stop(project, run)


def test_an_exception_on_one_rank_costs_that_worker(project: Project) -> None:
    run, before = begin(project, "2..3", "model.fail_once_at=150")
    project.wait_for(run["run_id"], lambda status: status["generation"] > before["generation"])
    after = project.wait_for(run["run_id"], trains_with(3, before))
    stop(project, run)
    errors = [event for event in project.events(run["run_id"]) if event["kind"] == "worker_error"]
    assert len(errors) == 1
    assert "ZeroDivisionError" in errors[0]["detail"]
    assert len(set(pids(after)) & set(pids(before))) == 2


def test_an_exception_that_comes_again_ends_the_job_with_the_traceback(project: Project) -> None:
    run = project.submit("workers=1..2", "trainer.steps=300", "model.fail_at=25", "trainer.fuse=on")
    ended = project.wait_for_end(run["run_id"])
    assert (ended["state"], ended["exit_code"]) == ("FAILED", 1)
    assert "ZeroDivisionError: a mistake in the user's model" in ended["reason"]


def test_a_killed_controller_is_replaced_whatever_is_under_way(project: Project) -> None:
    """In the middle of a change; and together with a worker, whose loss the next controller finds."""
    run, before = begin(project, "1..3")
    project.launch("resize", run["run_id"], "2", "--no-wait", "--runs", project.runs)
    kill(project.processes(run)["controller"])
    small = project.wait_for(run["run_id"], lambda status: status["term"] > before["term"] and trains_with(2, before)(status))
    assert set(pids(small)) < set(pids(before))
    kill(pids(small)[1])
    kill(project.processes(run)["controller"])
    whole = project.wait_for(run["run_id"], lambda status: status["term"] > small["term"] and trains_with(2, small)(status))
    assert pids(whole)[0] == pids(small)[0]
    assert pids(whole)[1] not in pids(before)
    stop(project, run)


def test_all_workers_lost_go_on_from_the_checkpoint(project: Project) -> None:
    run, before = begin(project, "1..2")
    before = project.wait_for(run["run_id"], lambda status: status["checkpoint"] is not None and status["step"] > 45)
    for pid in pids(before):
        kill(pid)
    after = project.wait_for(run["run_id"], lambda status: status["term"] > before["term"] and trains_with(2, before)(status))
    base = next(event for event in project.events(run["run_id"]) if event["kind"] == "term_started" and event["term"] == after["term"])
    assert base["checkpoint_step"] >= before["checkpoint"]["step"]
    assert after["steps_lost"] == base["steps_lost"] >= max(0, before["step"] - base["checkpoint_step"])
    assert after["samples_repeated"] == 64 * after["steps_lost"]
    ended = project.json("stop", run["run_id"], "--runs", project.runs)
    assert_ledger_is_exact(project.events(run["run_id"]), ended["step"])


def test_notices_become_planned_shrinks(project: Project, tmp_path: Path) -> None:
    """SIGTERM to one worker, then a notice that takes the whole machine away: saved, and held until it goes."""
    notice = tmp_path / "notice"
    run, before = begin(project, "1..3", f"elastic.notice_file={notice}")
    kill(pids(before)[2], signal.SIGTERM)
    after = project.wait_for(run["run_id"], in_another_generation(before))
    assert pids(before)[2] not in pids(after)
    whole = project.wait_for(run["run_id"], trains_with(3, after))
    notice.write_text('{"deadline_s": 12}')
    held = project.wait_for(run["run_id"], lambda status: status["state"] == "RESIZING" and "held" in status["reason"])
    assert held["step"] >= whole["step"]
    assert held["checkpoint"]["step"] == held["step"]
    stop(project, run)
    events = project.events(run["run_id"])
    assert next(event for event in events if event["kind"] == "resized")["cause"] == "drain"
    assert not any(event["kind"] == "worker_lost" for event in events)


def test_below_the_minimum_the_state_is_saved_and_held_until_capacity_is_back(project: Project) -> None:
    run, before = begin(project, "2..2")
    kill(pids(before)[1])
    whole = project.wait_for(run["run_id"], trains_with(2, before))
    assert pids(whole)[0] == pids(before)[0]
    ended = stop(project, run)
    events = project.events(run["run_id"])
    held = next(event for event in events if event["kind"] == "generation_formed" and event["held"])
    saved = [event["checkpoint_step"] for event in events if event["kind"] == "checkpoint_committed"]
    assert any(step >= held["step"] for step in saved if step < ended["step"]), "the held state was saved"
