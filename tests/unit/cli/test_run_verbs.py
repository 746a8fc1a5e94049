from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from launcher.backends.base import Dashboard, Owner
from launcher.cli import run_verbs
from launcher.core.errors import BackendUnavailable, RunNotFound, RunStateError, UsageError
from launcher.core.types import Generation, Step
from launcher.jobs.refs import RunRef
from launcher.record.desired import WorkerBounds
from launcher.record.members import LastChange
from launcher.record.status import JobState
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock

pytestmark = pytest.mark.unit


@pytest.fixture
def call(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("LAUNCHER_RUNS", str(runs))

    def call(verb: str, *words: str) -> Result:
        result = CliRunner().invoke(getattr(run_verbs, verb), list(words), catch_exceptions=False)
        assert result.stdout == click.unstyle(result.stdout)
        return result

    return call


@pytest.fixture
def finished(submit: Callable[..., RunRef], clock: ScriptedClock) -> RunRef:
    ref = submit(name="mine")
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING, step=100).begin_term()
    for minute in range(3):
        controller.segment("logs", *({"rank": rank, "stream": "stdout", "line": f"minute {minute}"} for rank in (0, 1)))
        controller.segment("events", {"kind": "checkpoint_committed", "step": minute})
        clock.advance(60)
    controller.end(JobState.SUCCEEDED, exit_code=0)
    return ref


def test_ls_shows_runs_and_json(call: Callable[..., Result], finished: RunRef, submit: Callable[..., RunRef]) -> None:
    submit(name="later")
    lines = call("ls").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["NAME", "STATE"], ["later", "PENDING"], ["mine", "SUCCEEDED"]]
    assert [run["name"] for run in json.loads(call("ls", "-o", "json").stdout)] == ["later", "mine"]


def test_ls_of_nothing_is_no_error(call: Callable[..., Result], runs: Path) -> None:
    result = call("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no runs in" in result.stderr
    assert json.loads(call("ls", "-o", "json").stdout) == []
    assert not runs.exists()


def test_status_answers_whatever_the_state(call: Callable[..., Result], finished: RunRef, submit: Callable[..., RunRef]) -> None:
    result = call("status", "mi")
    assert result.exit_code == 0
    assert result.stdout.startswith("mine  SUCCEEDED\n")
    document = json.loads(call("status", finished.run_id, "-o", "json").stdout)
    wanted = "run_id name state step epoch term world_size generation workers steps_lost samples_repeated train_loss metrics samples_per_s"
    assert {*wanted.split(), "goodput", "checkpoint", "started_at", "ended_at", "reason", "exit_code"} <= set(document)
    assert set(document["workers"]) == {"min", "max", "target"}


def test_an_unknown_run_is_a_usage_error(call: Callable[..., Result], finished: RunRef) -> None:
    for verb in ("status", "logs", "events", "resize", "stop", "resume", "dashboard"):
        with pytest.raises(RunNotFound, match="there is no run other") as caught:
            call(verb, "other")
        assert caught.value.exit_code == 2


def test_runs_elsewhere_are_named_by_an_option(call: Callable[..., Result], finished: RunRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCHER_RUNS")
    result = call("status", "mine", "--runs", finished.runs)
    assert f"launch logs mine --runs {finished.runs}" in result.stdout


def test_logs_are_chosen_by_rank_tail_and_time(call: Callable[..., Result], finished: RunRef) -> None:
    assert call("logs", "mine").stdout.splitlines()[:2] == ["[rank 0] minute 0", "[rank 1] minute 0"]
    assert call("logs", "mine", "--rank", "1", "--tail", "2").stdout == "[rank 1] minute 1\n[rank 1] minute 2\n"
    late = call("logs", "mine", "--since", "2026-01-01T00:01:30+00:00", "-o", "json").stdout
    assert [json.loads(line)["line"] for line in late.splitlines()] == ["minute 2", "minute 2"]
    assert call("logs", "mine", "-f").stdout.count("minute") == 6
    assert call("logs", "mine", "--since", "yesterday").exit_code == 2


def test_since_is_an_age_or_a_moment() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert run_verbs.parse_since("10m", now) == now - timedelta(minutes=10)
    assert run_verbs.parse_since("1d", now) == datetime(2026, 1, 1, tzinfo=UTC)
    assert run_verbs.parse_since("2026-01-01T12:00:00Z", now) == datetime(2026, 1, 1, 12, tzinfo=UTC)
    with pytest.raises(click.BadParameter, match="neither an age"):
        run_verbs.parse_since("10 parsecs", now)


def test_events_are_one_object_a_line(call: Callable[..., Result], finished: RunRef) -> None:
    assert call("events", "mine").stdout.count("checkpoint_committed") == 3
    assert [json.loads(line)["step"] for line in call("events", "mine", "-o", "json").stdout.splitlines()] == [0, 1, 2]


def test_stopping_an_ended_run_is_no_error(call: Callable[..., Result], finished: RunRef) -> None:
    result = call("stop", "mine")
    assert (result.exit_code, result.stdout) == (0, "mine has ended: SUCCEEDED at step 100/100\n")


def test_stop_waits_for_the_end_unless_told_not_to(
    call: Callable[..., Result], submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit(name="mine")
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    assert call("stop", "mine", "--no-wait").stdout == "mine is asked to stop: RUNNING\n"
    asked: list[int] = []

    def owner(run: object) -> Owner:
        asked.append(1)
        if len(asked) == 3:
            controller.end(JobState.STOPPED, exit_code=3)
        return Owner.ALIVE

    backend.owner = owner  # type: ignore[method-assign, assignment]
    result = call("stop", "mine", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "STOPPED"


@pytest.fixture
def elastic(submit: Callable[..., RunRef], clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch) -> FakeController:
    """A run of 2..4 workers with 4, and a person whose waiting is the script's time."""
    monkeypatch.setattr("launcher.jobs.resizing.SystemClock", lambda: clock)
    ref = submit(name="mine", workers="2..4")
    return FakeController(ref.open(), clock, state=JobState.RUNNING, world_size=4, generation=1, step=50).begin_term()


def test_resize_waits_for_the_size_and_shows_the_change(call: Callable[..., Result], elastic: FakeController, clock: ScriptedClock) -> None:
    change = LastChange(
        cause="shrink", reason="asked for", from_size=4, to_size=3, generation=Generation(2), step=Step(60), at="", pause_s=0.05
    )
    now = {"workers": WorkerBounds(min=2, max=4, target=3), "world_size": 3, "generation": 2, "changes": 1, "last_change": change}
    clock.at(3.0, lambda: elastic.write(**now))
    result = call("resize", "mine", "3")
    assert result.exit_code == 0
    assert result.stderr == "mine is asked for 3 workers (2..4) instead of 4 workers (2..4); waiting\n"
    assert result.stdout == ("mine has 3 workers (2..4), generation 2\n  4 -> 3 workers at step 60 (shrink: asked for): pause 0.05 s\n")
    again = call("resize", "mine", "3")
    assert "already: nothing new was written" in again.stderr
    assert again.stdout == "mine has 3 workers (2..4), generation 2\n"


def test_resize_does_not_wait_for_capacity(call: Callable[..., Result], elastic: FakeController, clock: ScriptedClock) -> None:
    wanted = WorkerBounds(min=2, max=6, target=6)
    clock.at(3.0, lambda: elastic.write(workers=wanted, waiting_for="2 workers with 1 GPU each"))
    result = call("resize", "mine", "2..6", "-o", "json")
    assert result.exit_code == 0
    assert "it has 4 of 6 and waits for 2 workers with 1 GPU each; the wish stays" in result.stderr
    document = json.loads(result.stdout)
    assert (document["workers"]["target"], document["waiting_for"]) == (6, "2 workers with 1 GPU each")


def test_resize_without_waiting(call: Callable[..., Result], elastic: FakeController) -> None:
    result = call("resize", "mine", "3", "--no-wait")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "mine is asked for 3 workers (2..4) instead of 4 workers (2..4)\n"


def test_an_interrupt_of_the_wait_leaves_the_request(call: Callable[..., Result], elastic: FakeController, clock: ScriptedClock) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.at(1.0, interrupt)
    result = call("resize", "mine", "3")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "the wish stays: mine is asked for 3 workers (2..4); launch status mine shows how it fares" in result.stderr
    desired = elastic.run.desired()
    assert desired is not None
    assert desired.workers.target == 3
    clock.at(2.0, interrupt)
    assert json.loads(call("resize", "mine", "3", "-o", "json").stdout)["world_size"] == 4


@pytest.mark.parametrize(("state", "exits"), [(JobState.SUCCEEDED, 0), (JobState.FAILED, 1), (JobState.STOPPED, 3)])
def test_a_run_that_ends_while_resize_waits_gives_its_exit_code(
    call: Callable[..., Result], elastic: FakeController, clock: ScriptedClock, state: JobState, exits: int
) -> None:
    clock.at(1.0, lambda: elastic.end(state))
    result = call("resize", "mine", "3")
    assert (result.exit_code, result.stdout) == (exits, f"mine: it has ended: {state.value}\n")


def test_a_run_without_a_controller_cannot_be_resized_now(
    call: Callable[..., Result], elastic: FakeController, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.owned = Owner.UNKNOWN
    result = call("resize", "mine", "3")
    assert result.exit_code == 4
    assert "who takes it over fulfils the wish" in result.stdout


def test_resize_needs_a_size(call: Callable[..., Result], elastic: FakeController) -> None:
    with pytest.raises(UsageError, match="does not say how many") as caught:
        call("resize", "mine")
    assert caught.value.next == "`launch status mine` shows what it has"


def test_resume_follows_or_detaches(
    call: Callable[..., Result], submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit(name="mine")
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term().end(JobState.FAILED)
    assert "launch logs mine -f" in call("resume", "mine", "-d").stdout
    with pytest.raises(RunStateError, match="is running already"):
        call("resume", "mine")

    again = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term(from_term=1)  # type: ignore[arg-type]
    again.end(JobState.STOPPED)

    def fail_at_once(run: Any) -> None:
        FakeController(run, clock).begin_term(from_term=2).end(JobState.FAILED, reason="no luck")  # type: ignore[arg-type]

    backend.on_launch = fail_at_once
    result = call("resume", "mine")
    assert result.exit_code == 1
    assert "no luck" in result.stdout


def test_a_dashboard_has_an_address_and_a_token(call: Callable[..., Result], finished: RunRef, backend: FakeBackend) -> None:
    with pytest.raises(BackendUnavailable, match="no dashboard is up"):
        call("dashboard", "mine")
    backend.page = Dashboard(url="http://127.0.0.1:8265", token_file="/home/me/token")
    assert call("dashboard", "mine").stdout == "http://127.0.0.1:8265\ntoken: /home/me/token\n"
    assert json.loads(call("dashboard", "mine", "-o", "json").stdout) == {"url": "http://127.0.0.1:8265", "token_file": "/home/me/token"}
