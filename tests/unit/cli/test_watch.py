from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from launcher import jobs
from launcher.cli import watch
from launcher.cli.screen import LiveScreen, Pace, PlainScreen, colour_wanted
from launcher.core.errors import StoreUnavailable
from launcher.core.types import Term
from launcher.jobs.refs import RunRef
from launcher.record.desired import WorkerBounds
from launcher.record.status import JobState
from tests.support.fakes import FakeController, ScriptedClock

pytestmark = pytest.mark.unit


@pytest.fixture
def playing(submit: Callable[..., RunRef], clock: ScriptedClock, runs: Path, monkeypatch: pytest.MonkeyPatch) -> RunRef:
    """A job of 100 steps at one a second, with an evaluation, a checkpoint and a user who prints."""
    monkeypatch.setenv("LAUNCHER_RUNS", str(runs))
    ref = submit(name="mine")
    box: list[FakeController] = []

    def begin() -> None:
        box.append(FakeController(ref.open(), clock).begin_term())
        box[0].segment("events", {"kind": "term_started", "step": 0})

    def run() -> None:
        box[0].write(state=JobState.RUNNING, world_size=1, generation=1, dashboard="http://127.0.0.1:8265")

    def half() -> None:
        box[0].segment("logs", {"worker": "w", "rank": 0, "stream": "stdout", "line": "hello from the model"})
        box[0].segment("events", {"kind": "steps", "step": 50}, {"kind": "checkpoint_committed", "step": 50})
        box[0].write(metrics={"accuracy": 0.9})

    clock.at(1.0, begin)
    clock.at(2.0, run)
    for second in range(3, 103):
        clock.at(second, lambda: box[0].beat())
    clock.at(52.1, half)
    clock.at(103.0, lambda: box[0].end(JobState.SUCCEEDED, exit_code=0, samples_per_s=64.0))
    return ref


def test_plain_lines_tell_the_whole_story(playing: RunRef, clock: ScriptedClock, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.follow(playing, output="text", clock=clock) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == click.unstyle(out)
    lines = out.splitlines()
    assert lines[0].startswith("mine is submitted")
    assert "  status      launch status mine" in lines
    assert lines.count("[rank 0] hello from the model") == 1
    assert sum("checkpoint_committed" in line for line in lines) == 1
    assert not any("  steps" in line and "[term" in line for line in lines)
    assert any(line.startswith("dashboard: http://127.0.0.1:8265") for line in lines)
    states = [line.split("  ")[0] for line in lines if line.startswith(("PENDING", "STARTING", "RUNNING", "SUCCEEDED"))]
    assert states[:3] == ["PENDING", "STARTING", "RUNNING"]
    assert states[-1] == "SUCCEEDED"
    assert 15 <= states.count("RUNNING") <= 25
    assert any("to go" in line for line in lines)
    assert "  speed       64 samples/s" in lines


def test_json_is_alone_on_stdout(playing: RunRef, clock: ScriptedClock, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.follow(playing, output="json", clock=clock) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(out.splitlines()) == 1
    assert {"run_id", "name", "state", "step", "epoch", "term", "world_size", "generation", "workers", "steps_lost", "exit_code"} <= set(
        document
    )
    assert document["state"] == "SUCCEEDED"
    assert "hello from the model" in err


@pytest.mark.parametrize(
    ("state", "written", "exits"),
    [(JobState.FAILED, None, 1), (JobState.FAILED, 4, 4), (JobState.STOPPED, None, 3), (JobState.SUCCEEDED, 0, 0)],
)
def test_the_exit_code_is_that_of_the_final_state(
    submit: Callable[..., RunRef], clock: ScriptedClock, state: JobState, written: int | None, exits: int
) -> None:
    ref = submit()
    FakeController(ref.open(), clock).begin_term().end(state, exit_code=written)
    assert watch.follow(ref, output="text", clock=clock) == exits


def test_a_run_that_goes_on_does_not_tell_its_past_again(
    submit: Callable[..., RunRef], clock: ScriptedClock, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock).begin_term()
    controller.segment("logs", {"rank": 0, "stream": "stdout", "line": "old"})
    clock.at(1.0, lambda: controller.segment("logs", {"rank": 0, "stream": "stdout", "line": "new"}))
    clock.at(2.0, lambda: controller.end(JobState.SUCCEEDED))
    watch.follow(ref, output="text", fresh=False, clock=clock)
    out = capsys.readouterr().out
    assert "[rank 0] new" in out
    assert "old" not in out


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_without_a_terminal_an_interrupt_detaches(playing: RunRef, clock: ScriptedClock, capsys: pytest.CaptureFixture[str]) -> None:
    clock.at(20.0, _interrupt)
    assert watch.follow(playing, output="json", clock=clock) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["state"] == "RUNNING"
    assert "mine keeps running. Come back: launch logs mine -f; end it: launch stop mine" in err
    desired = playing.open().desired()
    assert desired is not None
    assert desired.state == "running"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _sit_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest puts its own streams in place between set-up and call."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr("sys.stdout", screen)
    return screen


@pytest.mark.parametrize(
    ("answer", "exits", "wanted"), [("d", 130, "running"), ("s", 3, "stopped"), ("c", 0, "running"), (None, 3, "stopped")]
)
def test_on_a_terminal_an_interrupt_asks_first(
    playing: RunRef,
    clock: ScriptedClock,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | None,
    exits: int,
    wanted: str,
) -> None:
    _sit_at_a_terminal(monkeypatch)

    def prompt(*_: Any, **__: Any) -> str:
        if answer is None:
            raise click.Abort
        return answer

    monkeypatch.setattr(click, "prompt", prompt)
    clock.at(20.0, _interrupt)
    if wanted == "stopped":
        ended = {"done": False}

        def obey() -> None:
            desired = playing.open().desired()
            status = jobs.status(playing, clock=clock)
            if desired is not None and desired.state == "stopped" and not ended["done"]:
                ended["done"] = True
                run = playing.open()
                run.put_status(Term(status.term), replace(status, state=JobState.STOPPED, exit_code=3, sequence=10**6))
                clock._script.clear()

        clock.at(21.5, obey)
    assert watch.follow(playing, output="text", clock=clock) == exits
    desired = playing.open().desired()
    assert desired is not None
    assert desired.state == wanted


def test_an_outage_of_the_store_does_not_end_the_watch(
    playing: RunRef, clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, left = jobs.watch, [3]

    def shaky(*args: Any, **options: Any) -> Iterator[Any]:
        if left[0]:
            left[0] -= 1
            raise StoreUnavailable("the run store failed to list")
        yield from original(*args, **options)

    monkeypatch.setattr(jobs, "watch", shaky)
    assert watch.follow(playing, output="text", clock=clock) == 0
    assert capsys.readouterr().out.count("trying again") == 3


def test_detached_says_how_to_go_on(playing: RunRef, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.submitted(playing, output="text") == 0
    assert "launch logs mine -f" in capsys.readouterr().out
    assert watch.submitted(playing, output="json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "PENDING"


def test_a_live_screen_shows_bar_figures_and_scrolling_lines(
    playing: RunRef, clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = _sit_at_a_terminal(monkeypatch)
    assert watch.follow(playing, output="text", clock=clock) == 0
    text = click.unstyle(terminal.getvalue())
    assert "step 40/100" in text
    assert "[rank 0] hello from the model" in text
    assert "accuracy 0.9" in text
    assert LiveScreen is not PlainScreen


@pytest.mark.parametrize("screen", ["plain", "live"])
def test_a_change_of_the_group_is_shown_when_it_happens(
    submit: Callable[..., RunRef], clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], screen: str
) -> None:
    terminal = _sit_at_a_terminal(monkeypatch) if screen == "live" else None
    ref = submit(name="mine", workers="2..6")
    six = WorkerBounds(min=2, max=6, target=3)
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING, world_size=2, generation=1, step=1, workers=six).begin_term()

    def grow() -> None:
        controller.segment(
            "events",
            {"kind": "generation_prepared", "step": 1},
            {"kind": "resized", "step": 1, "cause": "grow", "from_size": 2, "to_size": 3},
        )
        controller.write(world_size=3, generation=2)

    clock.at(1.0, grow)
    clock.at(2.0, lambda: controller.end(JobState.SUCCEEDED))
    watch.follow(ref, output="text", clock=clock)
    text = click.unstyle(terminal.getvalue() if terminal is not None else capsys.readouterr().out)
    assert "2 of 3 workers (2..6), generation 1" in text
    assert "3 workers (2..6), generation 2" in text
    assert text.count("resized  2 -> 3 workers at step 1") == 1
    assert "generation_prepared" not in text


def test_colour_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    assert colour_wanted(Terminal())
    assert not colour_wanted(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert colour_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour_wanted(Terminal())


def test_time_to_go_is_from_what_was_seen(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    controller = FakeController(submit().open(), clock, state=JobState.RUNNING)
    pace = Pace(clock)
    assert pace.eta_s(controller.write(state=JobState.RUNNING, step=10)) is None
    clock.advance(10)
    assert pace.eta_s(controller.write(step=20)) == pytest.approx(80)
    assert pace.eta_s(controller.write(state=JobState.RESIZING)) is None
