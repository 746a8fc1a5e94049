from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest

from launcher.backends.base import Placement
from launcher.cli import render
from launcher.core.types import Generation, JsonObject, RunId, Step, WorkerId
from launcher.jobs.refs import RunRef
from launcher.jobs.submitting import Plan
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.events import decode
from launcher.record.members import LastChange
from launcher.record.rows import LogLine
from launcher.record.status import CheckpointRef, JobState, RunStatus
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit

REF = RunRef("/data/runs", RunId("mlp-aaaaaa"), "mine")
STATUS = RunStatus(
    run_id="mlp-aaaaaa",
    name="mine",
    state=JobState.RUNNING,
    step=50,
    total_steps=200,
    epoch=2.5,
    term=1,
    generation=1,
    world_size=2,
    workers=WorkerBounds(min=1, max=4, target=4),
    train_loss=0.12345,
    metrics={"accuracy": 0.975, "loss": 0.2},
    samples_per_s=12345.6,
    goodput=0.875,
    checkpoint=CheckpointRef(step=40, uri="/data/runs/mlp-aaaaaa/checkpoints/x.json"),
    started_at="2026-01-01T00:00:00.000Z",
    submitted_at="2026-01-01T00:00:00.000Z",
)


def test_a_progress_line_has_the_figures() -> None:
    line = click.unstyle(render.progress_line(STATUS, eta_s=185))
    assert line == (
        "RUNNING  step 50/200 (25 %)  epoch 2.50  loss 0.1235  accuracy 0.975  12,346 samples/s  3m 05s to go"
        "  2 of 4 workers (1..4), generation 1"
    )
    pending = RunStatus(run_id="r", name="r", state=JobState.PENDING, reason="the controller is starting", workers=STATUS.workers)
    assert click.unstyle(render.progress_line(pending)) == "PENDING  the controller is starting"


def test_the_summary_says_what_became_of_it_and_where_everything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_RUNS", "/data/runs")
    failed = replace(
        STATUS,
        state=JobState.FAILED,
        reason="rank 1 failed at step 50:\nTraceback\nValueError: <no>",
        ended_at="2026-01-01T00:01:05.000Z",
        tracking=("W&B: recording offline", "W&B did not finish"),
    )
    text = click.unstyle(render.summary(failed, REF))
    assert text.startswith("FAILED  mine\n  rank 1 failed at step 50:\n")
    assert text.count("Traceback") == 1
    for said in ("50/200, 2.50 epochs", "1m 05s", "12,346 samples/s", "88 %", "step 40  /data", "launch logs mine", "launch resume mine"):
        assert said in text
    assert "\n  tracking    W&B: recording offline\n              W&B did not finish\n" in text
    assert "\n  tracking    W&B: recording offline\n" in click.unstyle(render.status_text(failed, REF))
    assert "resume" not in click.unstyle(render.summary(replace(STATUS, state=JobState.SUCCEEDED), REF))


def test_the_status_of_an_elastic_run_says_what_its_group_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_RUNS", "/data/runs")
    assert "change" not in render.status_text(STATUS, REF)
    figures = {"pause_s": 0.21, "detect_s": 0.02, "total_s": 0.3}
    change = LastChange(cause="lost", from_size=3, to_size=2, generation=Generation(1), step=Step(40), at="", **figures)
    elastic = replace(
        STATUS, changes=5, last_change=change, waiting_for="2 workers with 1 GPU each", draining=("w3",), stragglers=("w4", "w5")
    )
    assert RunStatus.from_json(json.loads(json.dumps(elastic.to_json()))) == elastic
    lines = [line.strip() for line in click.unstyle(render.status_text(elastic, REF)).splitlines()]
    assert "workers     2 of 4 workers (1..4), generation 1, waits for 2 workers with 1 GPU each" in lines
    assert "draining    w3" in lines
    assert "slow        w4, w5: much slower than the others" in lines
    assert "last change 3 -> 2 workers at step 40 (lost: a worker was lost): pause 0.21 s; detect 0.02 s" in lines
    assert f"{'d' * 32}  0.30 s in all" in lines
    assert "changes     5" in lines


def test_a_status_of_before_there_was_elasticity_is_read() -> None:
    document = STATUS.to_json()
    for key in ("changes", "last_change", "waiting_for", "draining", "stragglers"):
        del document[key]
    assert RunStatus.from_json(document) == STATUS


def test_commands_name_the_place_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_RUNS", "/data/runs")
    assert render.command("logs", REF, "-f") == "launch logs mine -f"
    monkeypatch.setenv("LAUNCHER_RUNS", "/other")
    assert render.command("stop", REF) == "launch stop mine --runs /data/runs"


def test_the_table_is_aligned() -> None:
    pending = RunStatus(run_id="b", name="a-longer-name", state=JobState.PENDING, workers=STATUS.workers)
    lines = click.unstyle(render.runs_table([STATUS, pending])).splitlines()
    assert lines[0].index("STEP") == lines[1].index("50/200")
    assert len(lines) == 3


def test_events_and_log_lines_say_where_they_happened() -> None:
    event: JsonObject = {"time": "x", "term": 2, "generation": 3, "step": 7, "kind": "worker_lost", "rank": 1, "exit": {"code": -9}}
    assert (
        click.unstyle(render.event_line(decode(event, where=""))) == "x  [term 2 generation 3 step 7]  worker_lost  rank 1  exit={code=-9}"
    )
    line = LogLine(time="x", worker=WorkerId("w1"), rank=1, generation=3, stream="stdout", line="[red] hello")
    assert click.unstyle(render.log_line(line)) == "[rank 1] [red] hello"


def test_durations_are_short() -> None:
    assert [render.duration(value) for value in (0.2, 59, 60, 3599, 3600, 90000)] == ["0s", "59s", "1m 00s", "59m 59s", "1h 00m", "1d 01h"]


@pytest.mark.parametrize("fits", [True, False])
def test_a_plan_says_whether_it_fits(tmp_path: Path, fits: bool) -> None:
    config = job_config(tmp_path, workers="1..4")
    spec = JobSpec(
        run_id=RunId("r"),
        name="r",
        config=config,
        code=CodeRef(digest="ab" * 32, git_commit="c" * 40, git_dirty=True),
        versions={},
        submitted_at="",
    )
    place = Placement(fits=fits, workers=2, device="cpu", gpu_per_worker=0, where="this machine", reason="" if fits else "no GPU")
    text = click.unstyle(render.plan_text(Plan(spec, place, 2048, 3, ("the code reads DATA_ROOT",))))
    assert text.startswith("fits now with 2 workers\n" if fits else "does not fit now: no GPU\n")
    for said in (
        "models.mlp.MLP",
        "10 epochs of 64 samples",
        "8 of 8 samples a step, up to 2",
        "1..4, 0 GPU each, on cpu",
        "3 files, 2 KiB",
    ):
        assert said in text
    assert "cccccccccccc with changes" in text
