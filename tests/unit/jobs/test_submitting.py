from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import jobs
from launcher.backends.kuberay.rayjob import LONGEST_NAME
from launcher.config.schema import NAME_PATTERN
from launcher.core.errors import BackendUnavailable, CapacityError, ConfigError, NameTaken
from launcher.jobs import submitting
from launcher.jobs.refs import RunRef
from launcher.jobspec.job import JobSpec
from launcher.record.variables import SecretReference
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock, code_archive, job_config

pytestmark = pytest.mark.unit


def test_a_submitted_run_has_its_whole_record(submit: Callable[..., RunRef], backend: FakeBackend, runs: Path) -> None:
    ref = submit(workers="1..2")
    assert sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file()) == sorted(
        [
            f"names/{ref.run_id}.json",
            f"{ref.run_id}/code/{'c0de' * 16}.zip",
            f"{ref.run_id}/desired/000000000001.json",
            f"{ref.run_id}/spec-1.json",
        ]
    )
    spec = JobSpec.from_json(json.loads((runs / ref.run_id / "spec-1.json").read_text()))
    assert backend.launched == [spec]
    assert spec.name == spec.config.name == ref.name == ref.run_id
    assert spec.config.runs == str(runs)
    assert set(spec.versions) == {"python", "launcher", "torch", "ray"}
    desired = ref.open().desired()
    assert desired is not None
    assert (desired.revision, desired.state, desired.workers.max, desired.resumes) == (1, "running", 2, None)


def test_an_id_is_short_and_says_the_model(submit: Callable[..., RunRef]) -> None:
    ref = submit(model={"_target_": "torch.My_Nets.Net"})
    stem, _, tail = ref.run_id.rpartition("-")
    assert stem == "my-nets"
    assert len(tail) == 6
    assert NAME_PATTERN.fullmatch(ref.run_id)


@pytest.mark.parametrize(
    ("module", "stem"),
    [
        ("_3d", "run-3d"),
        ("_net", "net"),
        ("_", "run"),
        ("ResNet_", "resnet"),
        ("a" * 39 + "_b" * 9, "a" * 39),
        ("_" + "7" * 60, "run-" + "7" * 36),
    ],
)
def test_an_id_names_objects_of_a_cluster_as_well(submit: Callable[..., RunRef], module: str, stem: str) -> None:
    ref = submit(model={"_target_": f"torch.{module}.Net"})
    assert len(ref.run_id) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", ref.run_id)
    assert ref.run_id[:-7] == stem


def test_a_relative_place_means_the_same_elsewhere(
    submit: Callable[..., RunRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Path, backend: FakeBackend
) -> None:
    monkeypatch.chdir(tmp_path)
    ref = jobs.submit(job_config("./here"), folder=code)
    assert ref.runs == str(tmp_path / "here")
    assert backend.launched[0].config.runs == ref.runs


def test_a_taken_name_is_refused_and_leaves_nothing(submit: Callable[..., RunRef], backend: FakeBackend, runs: Path) -> None:
    submit(name="mine")
    before = sorted(runs.rglob("*"))
    with pytest.raises(NameTaken, match="another run has this name") as caught:
        submit(name="mine")
    assert caught.value.given == "mine"
    assert sorted(runs.rglob("*")) == before
    assert len(backend.launched) == 1


def test_who_loses_the_race_for_a_name_leaves_nothing(
    submit: Callable[..., RunRef], runs: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(name="mine")
    before = sorted(runs.rglob("*"))
    monkeypatch.setattr(submitting, "_refuse_taken", lambda config: None)
    with pytest.raises(NameTaken):
        submit(name="mine")
    assert sorted(runs.rglob("*")) == before
    assert len(backend.launched) == 1


@pytest.mark.parametrize("error", [BackendUnavailable("no Ray"), KeyboardInterrupt()])
def test_a_launch_that_fails_leaves_nothing(submit: Callable[..., RunRef], backend: FakeBackend, runs: Path, error: BaseException) -> None:
    backend.launch_error = error
    with pytest.raises(type(error)):
        submit(name="mine")
    assert not runs.exists()
    backend.launch_error = None
    assert submit(name="mine").name == "mine"


def test_what_cannot_run_is_refused_before_anything_is_written(submit: Callable[..., RunRef], backend: FakeBackend, runs: Path) -> None:
    backend.placement = replace(backend.placement, fits=False, workers=0, reason="1 worker with 1 GPU each needs 1; there are 0")
    with pytest.raises(CapacityError, match="does not fit") as caught:
        submit(gpu=1)
    assert "there are 0" in str(caught.value)
    backend.place_error = BackendUnavailable("no cluster")
    with pytest.raises(BackendUnavailable):
        submit()
    assert not runs.exists()


def test_a_module_that_the_code_lacks_is_named(submit: Callable[..., RunRef], runs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        submit(model={"_target_": "models.mpl.MLP"})
    assert caught.value.where == "model._target_"
    assert caught.value.given == "models.mpl.MLP"
    assert caught.value.expected == "a module under models: did you mean mlp?"
    with pytest.raises(ConfigError) as caught:
        submit(data={"_target_": "models.digits.Digits", "transforms": [{"_target_": "models.flips.Flip"}]})
    assert caught.value.where == "data.transforms.0._target_"
    assert not runs.exists()


def test_init_from_must_have_a_checkpoint(submit: Callable[..., RunRef], runs: Path, clock: ScriptedClock, backend: FakeBackend) -> None:
    with pytest.raises(ConfigError) as caught:
        submit(checkpoint={"init_from": "nobody"})
    assert caught.value.where == "checkpoint.init_from"
    first = submit(name="first")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        submit(checkpoint={"init_from": "first"})
    FakeController(first.open(), clock).begin_term().checkpoint(10)
    for word in ("first", f"{runs}/first", first.run_id[:-1]):
        submit(checkpoint={"init_from": word})
        assert backend.launched[-1].config.checkpoint.init_from == first.uri


def test_a_plan_touches_nothing(backend: FakeBackend, code: Path, runs: Path) -> None:
    config = job_config(runs, name="mine", workers="1..4")
    plan = jobs.plan(config, folder=code)
    assert plan.placement.fits
    document = plan.to_json()
    assert document["workers"] == {"min": 1, "max": 4, "target": 4, "now": 1}
    assert document["code"] == {"digest": "c0de" * 16, "bytes": 3, "files": 2, "git_commit": None, "git_dirty": False}
    json.dumps(document)
    assert document["name"] == "mine"
    assert jobs.plan(job_config(runs), folder=code).to_json()["name"] is None
    backend.place_error = BackendUnavailable("no cluster", next="start one")
    plan = jobs.plan(config, folder=code)
    assert not plan.placement.fits
    assert plan.placement.reason == "no cluster; start one"
    assert backend.launched == []
    assert not runs.exists()


def test_a_plan_refuses_a_taken_name(submit: Callable[..., RunRef], code: Path, runs: Path) -> None:
    submit(name="mine")
    with pytest.raises(NameTaken):
        jobs.plan(job_config(runs, name="mine"), folder=code)


def test_the_record_has_the_values_of_variables_and_of_secrets_only_where_they_are(
    submit: Callable[..., RunRef], backend: FakeBackend, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", "/a")
    monkeypatch.setenv("HF_TOKEN", "v3ry-s3cr3t")
    ref = submit(environment={"DATA_ROOT": None, "SIZE": "3", "HF_TOKEN": {"secret": "HF_TOKEN"}})
    recorded = backend.launched[0].config.environment
    secret = SecretReference(secret="HF_TOKEN")
    assert recorded.items() >= {"DATA_ROOT": "/a", "SIZE": "3", "HF_TOKEN": secret}.items()
    assert JobSpec.from_json(ref.open().spec(1)).config.environment == recorded
    assert jobs.status(ref).environment == recorded, "also before a controller leads it"
    assert not [path for path in runs.rglob("*") if path.is_file() and b"v3ry" in path.read_bytes()]


def test_a_variable_that_the_command_lacks_is_refused_before_anything_is_written(
    submit: Callable[..., RunRef], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    with pytest.raises(ConfigError) as caught:
        submit(environment={"DATA_ROOT": None})
    assert caught.value.where == "environment.DATA_ROOT"
    assert not runs.exists()


def test_variables_that_the_code_reads_and_that_stay_behind_are_said(
    backend: FakeBackend, code: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.jobspec.code.archive", lambda *_args, **_options: code_archive(variables=["DATA_ROOT"]))
    monkeypatch.setenv("DATA_ROOT", "/a")
    told: list[str] = []
    jobs.submit(job_config(runs), folder=code, tell=told.append)
    plan = jobs.plan(job_config(runs), folder=code)
    assert plan.to_json()["left_behind"] == list(plan.left_behind) == told
    assert "environment.DATA_ROOT=null" in told[0]
    named = jobs.plan(job_config(runs, environment={"DATA_ROOT": None}), folder=code)
    assert named.left_behind == ()
    assert named.to_json()["config"]["environment"]["DATA_ROOT"] == "/a"  # type: ignore[index,call-overload]
