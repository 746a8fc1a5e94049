from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher
from launcher.backends.base import Dashboard
from launcher.core.types import Generation, Step
from launcher.jobs.refs import RunRef
from launcher.record.desired import WorkerBounds
from launcher.record.members import LastChange
from launcher.record.status import CheckpointRef, JobState
from launcher.sdk.display import run_html
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock, code_archive, job_config

pytestmark = pytest.mark.unit


@pytest.fixture
def run(submit: Callable[..., RunRef], clock: ScriptedClock) -> launcher.Run:
    return launcher.Run(submit(name="mine"), clock=clock)


def test_submit_and_attach_give_the_same_run(
    runs: Path, code: Path, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def compose(overrides: list[str], *, folder: Path) -> launcher.JobConfig:
        asked.append((overrides, folder))
        return job_config(runs, name="mine")

    monkeypatch.setattr("launcher.config.load.compose", compose)
    monkeypatch.setenv("LAUNCHER_RUNS", str(runs))
    monkeypatch.chdir(tmp_path)

    async def in_a_loop() -> launcher.Run:
        return launcher.submit("model=mlp", "name=mine")

    run = asyncio.run(in_a_loop())
    assert asked == [(["model=mlp", "name=mine"], tmp_path)]
    assert (run.name, run.uri) == ("mine", f"{runs}/{run.id}")
    assert repr(launcher.attach("mi")) == repr(run) == f"Run('mine', '{run.uri}')"
    assert launcher.attach("mine", str(runs)).id == run.id
    assert run.status().state is JobState.PENDING


def test_wait_returns_the_end_or_times_out(run: launcher.Run, clock: ScriptedClock) -> None:
    controller = FakeController(run._ref.open(), clock, state=JobState.RUNNING).begin_term()
    with pytest.raises(TimeoutError, match="keeps running"):
        run.wait(timeout_s=5)
    clock.at(20.0, lambda: controller.end(JobState.FAILED, exit_code=1))
    seen: list[JobState] = []
    status = run.wait(timeout_s=60, on_status=lambda status: seen.append(status.state))
    assert (status.state, status.exit_code) == (JobState.FAILED, 1)
    assert seen[0] is JobState.RUNNING
    assert seen[-1] is JobState.FAILED


def test_the_verbs_are_those_of_the_shell(run: launcher.Run, clock: ScriptedClock, backend: FakeBackend) -> None:
    controller = FakeController(run._ref.open(), clock, state=JobState.RUNNING).begin_term()
    controller.segment("logs", {"rank": 0, "line": "hello"}, {"rank": 1, "line": "there"})
    controller.segment("events", {"kind": "started", "step": 0})
    controller.segment("metrics", {"step": 10, "loss": 0.5})
    assert [record["line"] for record in run.logs(rank=1)] == ["there"]
    assert [record["kind"] for record in run.events()] == ["started"]
    assert [row["loss"] for row in run.metrics()] == [0.5]
    backend.page = Dashboard(url="http://127.0.0.1:8265", token_file="")
    assert run.dashboard().url == "http://127.0.0.1:8265"
    run.stop()
    controller.end(JobState.STOPPED)
    assert run.resume() is run
    assert run.status().state is JobState.PENDING


def test_resize_waits_and_the_table_shows_size_and_change(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    run = launcher.Run(submit(name="wide", workers="2..4"), clock=clock)
    controller = FakeController(run._ref.open(), clock, state=JobState.RUNNING, world_size=4, generation=1).begin_term()
    assert run.resize("2..6", wait=False).world_size == 4
    change = LastChange(
        cause="grow", reason="<asked>", from_size=4, to_size=5, generation=Generation(2), step=Step(60), at="", pause_s=0.05
    )
    now = {"workers": WorkerBounds(min=2, max=6, target=5), "world_size": 5, "generation": 2, "last_change": change}
    clock.at(5.0, lambda: controller.write(**now))
    assert run.resize(5).world_size == 5
    html = run._repr_html_()
    assert "5 workers (2..6), generation 2" in html
    assert "4 -&gt; 5 workers at step 60 (grow: &lt;asked&gt;): pause 0.05 s" in html
    with pytest.raises(launcher.LauncherError, match="outside the bounds"):
        run.resize(7)


def test_the_table_escapes_what_came_from_outside(run: launcher.Run, clock: ScriptedClock) -> None:
    bad = "<script>alert('x')</script>"
    FakeController(run._ref.open(), clock).begin_term().end(
        JobState.FAILED,
        reason=bad,
        step=5,
        metrics={bad: 1.0},
        environment={"NOTE": bad},
        checkpoint=CheckpointRef(step=5, uri=bad),
        dashboard=f"http://x/'{bad}",
        train_loss=0.5,
    )
    html = run._repr_html_()
    assert "<script>" not in html
    assert "http://x/'" not in html
    assert "NOTE=&lt;script&gt;" in html
    assert "<progress value='5' max='100'>" in html
    assert "javascript:" not in run_html(FakeController(run._ref.open(), clock).write(dashboard="javascript:alert(1)"), run._ref)


def test_a_table_is_shown_also_where_the_record_is_broken(run: launcher.Run, runs: Path) -> None:
    (runs / run.id / "desired" / "000000000001.json").unlink()
    assert "not whole" in run._repr_html_()


def test_what_a_job_will_not_find_is_a_warning(
    runs: Path, code: Path, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.config.load.compose", lambda overrides, *, folder: job_config(runs))
    monkeypatch.setattr("launcher.jobspec.code.archive", lambda *_args, **_options: code_archive(variables=["DATA_ROOT"]))
    monkeypatch.setenv("DATA_ROOT", "/a")
    with pytest.warns(UserWarning, match=r"environment\.DATA_ROOT=null") as caught:
        launcher.submit(folder=tmp_path)
    assert caught[0].filename == __file__
