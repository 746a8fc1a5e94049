"""The main job, end to end, by the real command: what it prints, what it leaves, what the verbs make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import UNNAMED, Project, project_in, tell_variables, told_variables
from tests.support.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FIELDS = {
    "run_id", "name", "state", "step", "epoch", "term", "world_size", "generation", "workers", "steps_lost", "samples_repeated",
    "train_loss", "metrics", "samples_per_s", "goodput", "checkpoint", "started_at", "ended_at", "reason", "exit_code",
}  # fmt: skip


def assert_ledger_is_exact(events: list[dict[str, object]], steps: int) -> None:
    """Every step once, in order, and every sample of the stream once."""
    ledger = [event for event in events if event["kind"] == "steps"]
    covered = [step for event in ledger for step in range(int(str(event["first"])), int(str(event["last"])) + 1)]
    assert covered == list(range(1, steps + 1))
    samples = [event["samples"] for event in ledger]
    assert samples[0][0] == 0  # type: ignore[index]
    assert all(left[1] == right[0] for left, right in pairwise(samples))  # type: ignore[index]


@pytest.fixture(scope="module")
def first(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Any]]:
    """A job named first that has ended, and what its command printed; nobody changes its project."""
    with project_in(tmp_path_factory.mktemp("first"), ray_folder) as project:
        model = project.folder / "models" / "slow.py"
        model.write_text(model.read_text().replace("self.calls += 1", "self.calls += 1; print('call', self.calls, flush=True)"))
        project.environment["DATA_ROOT"] = "/a"
        tell_variables(project, "DATA_ROOT", UNNAMED)
        yield project, project.train("workers=2", "name=first", "trainer.eval_every_steps=20", "environment.DATA_ROOT=null")


def test_a_job_of_a_users_own_folder_from_submit_to_summary(first: tuple[Project, Any]) -> None:
    project, status = first
    assert status.keys() >= FIELDS
    assert (status["state"], status["exit_code"], status["step"], status["world_size"]) == ("SUCCEEDED", 0, 40, 2)
    assert status["workers"] == {"min": 2, "max": 2, "target": 2}
    assert 0 <= status["metrics"]["accuracy"] <= 1
    assert status["checkpoint"]["step"] == 40
    place = ("--runs", project.runs)
    assert project.json("status", "first", *place).keys() >= FIELDS
    events = [json.loads(line) for line in project.launch("events", "first", *place, "-o", "json").stdout.splitlines()]
    assert_ledger_is_exact(events, 40)
    assert [event["checkpoint_step"] for event in events if event["kind"] == "checkpoint_committed"] == [10, 20, 30, 40]
    assert [event["kind"] for event in events].count("first_step") == 1
    assert [run["name"] for run in project.json("ls", *place)] == ["first"]
    assert "SUCCEEDED" in project.launch("status", "fir", *place).stdout
    assert not list(project.folder.glob("outputs")), "Hydra leaves nothing behind"
    refused = project.launch("train", *project.job("name=first"), check=2)
    assert "first" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_tests_read_in_their_own_process_is_what_the_commands_print(first: tuple[Project, Any]) -> None:
    project, _ = first
    place = ("--runs", project.runs)
    assert project.status("first") == project.json("status", "first", *place)
    printed = project.launch("events", "first", *place, "-o", "json").stdout.splitlines()
    assert project.events("first") == [json.loads(line) for line in printed]


def test_what_workers_print_is_readable_by_rank(first: tuple[Project, Any]) -> None:
    project, _ = first
    lines = [json.loads(line) for line in project.launch("logs", "first", "--runs", project.runs, "-o", "json").stdout.splitlines()]
    ranks = {line["rank"] for line in lines if line["line"].startswith("call ")}
    assert ranks == {None, 0, 1}, "what is printed before there is a generation has no rank"
    of_one = project.launch("logs", "first", "--runs", project.runs, "--rank", "1", "--tail", "2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["rank"] for line in of_one] == [1, 1]


def test_stop_saves_and_resume_goes_on_with_more_steps(project: Project) -> None:
    run = project.submit("workers=2", "trainer.steps=2000", "name=long")
    project.wait_for("long", lambda status: status["step"] >= 12)
    again = project.launch("resume", "long", "--runs", project.runs, check=2)
    assert "running" in again.stderr.lower()
    project.launch("stop", "long", "--runs", project.runs)
    stopped = project.status("long")
    assert (stopped["state"], stopped["exit_code"]) == ("STOPPED", 3)
    assert stopped["checkpoint"]["step"] == stopped["step"] >= 12
    refused = project.launch("resume", "long", "seed=7", "--runs", project.runs, check=2)
    assert "checkpoint.init_from" in refused.stderr
    wanted = stopped["step"] + 15
    ended = project.json("resume", "long", f"trainer.steps={wanted}", "--runs", project.runs)
    assert (ended["run_id"], ended["state"], ended["step"], ended["steps_lost"]) == (run["run_id"], "SUCCEEDED", wanted, 0)
    assert_ledger_is_exact(project.events("long"), wanted)


def test_a_second_job_has_variables_of_its_own_and_may_begin_with_the_weights_of_the_first(
    project: Project, first: tuple[Project, Any]
) -> None:
    text = "/b\n= '$HOME' \u00fc"
    project.environment.update(DATA_ROOT=text, TEAM_TOKEN="v3ry-s3cr3t")
    tell_variables(project, "DATA_ROOT", "EMPTY", "HF_TOKEN", UNNAMED)
    variables = ("environment.DATA_ROOT=null", "environment.EMPTY=''", "environment.HF_TOKEN.secret=TEAM_TOKEN")
    pupil = project.train("name=pupil", "trainer.steps=5", "seed=3", f"checkpoint.init_from={first[0].runs}/first", *variables)
    assert (pupil["state"], pupil["step"]) == ("SUCCEEDED", 5)
    assert pupil["environment"].items() >= {"DATA_ROOT": text, "EMPTY": "", "HF_TOKEN": {"secret": "TEAM_TOKEN"}}.items()
    assert told_variables(first[0], "first") == [{"DATA_ROOT": "/a", UNNAMED: None}] * 2
    assert told_variables(project, "pupil") == [{"DATA_ROOT": text, "EMPTY": "", "HF_TOKEN": "v3ry-s3cr3t", UNNAMED: None}]
    holders = [path for path in Path(project.runs).rglob("*") if path.is_file() and b"v3ry" in path.read_bytes()]
    assert [path.parent.name for path in holders] == ["logs"], "where the job's own code has printed it"


def test_the_whole_job_on_object_storage(project: Project, s3_environment: S3Server) -> None:
    project.environment.update(s3_environment.environment)
    project.runs = s3_environment.uri("jobs")
    status = project.train("workers=2", "name=far")
    assert (status["state"], status["step"], status["checkpoint"]["step"]) == ("SUCCEEDED", 40, 40)
    assert status["checkpoint"]["uri"].startswith(project.runs)
    assert_ledger_is_exact(project.events("far"), 40)
    assert not (project.folder / "runs").exists()
    longer = project.json("resume", "far", "trainer.steps=50", "--runs", project.runs)
    assert (longer["state"], longer["step"]) == ("SUCCEEDED", 50)


def test_the_dashboard_asks_for_its_token(first: tuple[Project, Any]) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    project, _ = first
    page = project.json("dashboard", "first", "--runs", project.runs)
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{page['url']}/api/v0/actors", timeout=30)
    assert refused.value.code == 401
    token = Path(page["token_file"]).read_text().strip()
    with urlopen(Request(f"{page['url']}/api/version", headers={"Authorization": f"Bearer {token}"}), timeout=30) as answer:
        assert json.load(answer)["ray_version"]
