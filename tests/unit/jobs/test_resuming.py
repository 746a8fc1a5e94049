from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from launcher import jobs
from launcher.backends.base import Owner
from launcher.config.schema import Component, JobConfig
from launcher.core.errors import BackendUnavailable, ConfigError, RunStateError
from launcher.core.types import Term
from launcher.jobs.refs import RunRef
from launcher.record.desired import WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock

pytestmark = pytest.mark.unit

Change = Callable[[JobConfig], JobConfig]


def _trainer(**changes: Any) -> Change:
    return lambda config: replace(config, trainer=replace(config.trainer, **changes))


@pytest.fixture
def overridden(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], list[str]]:
    """The change that a word on the command line stands for, without Hydra."""

    def install(change: Change) -> list[str]:
        def apply(config: JobConfig, overrides: Sequence[str]) -> JobConfig:
            return change(config)

        monkeypatch.setattr("launcher.config.load.apply_overrides", apply)
        return ["word"]

    return install


@pytest.fixture
def ended(submit: Callable[..., RunRef], clock: ScriptedClock) -> Callable[[JobState], RunRef]:
    def end(state: JobState) -> RunRef:
        ref = submit(name="mine")
        FakeController(ref.open(), clock, step=100, epoch=10.0).begin_term().end(state, exit_code=1)
        return ref

    return end


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.STOPPED])
def test_an_ended_run_goes_on_with_the_same_spec(
    ended: Callable[[JobState], RunRef], clock: ScriptedClock, backend: FakeBackend, state: JobState
) -> None:
    ref = ended(state)
    assert jobs.resume(ref, clock=clock) == ref
    assert len(backend.launched) == 2
    assert backend.launched[1] == backend.launched[0]
    desired = ref.open().desired()
    assert desired is not None
    assert (desired.revision, desired.state, desired.spec, desired.resumes) == (2, "running", 1, 1)
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.step, status.exit_code, status.ended_at) == (JobState.PENDING, 100, None, None)
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term(from_term=status.term)  # type: ignore[arg-type]
    assert jobs.status(ref, clock=clock).state is JobState.RUNNING


def test_a_living_run_is_refused(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    with pytest.raises(RunStateError, match="is running already"):
        jobs.resume(ref, clock=clock)
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    with pytest.raises(RunStateError, match="is running already") as caught:
        jobs.resume(ref, clock=clock)
    assert caught.value.exit_code == 2
    assert len(backend.launched) == 1


def test_a_second_resume_is_refused(ended: Callable[[JobState], RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = ended(JobState.FAILED)
    jobs.resume(ref, clock=clock)
    with pytest.raises(RunStateError, match="is running already"):
        jobs.resume(ref, clock=clock)
    assert len(backend.launched) == 2


def test_of_two_resumes_at_once_one_wins(
    ended: Callable[[JobState], RunRef], clock: ScriptedClock, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = ended(JobState.FAILED)
    original, others = RunStore.create_desired, []

    def overtaken(self: RunStore, wanted: Any) -> bool:
        if not others:
            others.append(None)
            jobs.resume(ref, clock=clock)
        return original(self, wanted)

    monkeypatch.setattr(RunStore, "create_desired", overtaken)
    with pytest.raises(RunStateError, match="somebody else was faster"):
        jobs.resume(ref, clock=clock)
    assert len(backend.launched) == 2


def test_a_done_run_needs_to_be_lengthened(
    ended: Callable[[JobState], RunRef], clock: ScriptedClock, backend: FakeBackend, overridden: Callable[[Change], list[str]]
) -> None:
    ref = ended(JobState.SUCCEEDED)
    with pytest.raises(RunStateError, match="is done") as caught:
        jobs.resume(ref, clock=clock)
    assert caught.value.next == "launch resume mine trainer.epochs=20"
    with pytest.raises(RunStateError, match="is done"):
        jobs.resume(ref, overridden(_trainer(log_every_steps=3)), clock=clock)
    with pytest.raises(RunStateError, match="is done"):
        jobs.resume(ref, overridden(_trainer(epochs=None, steps=100)), clock=clock)
    jobs.resume(ref, overridden(_trainer(epochs=20.0)), clock=clock)
    spec = backend.launched[1]
    assert (spec.number, spec.config.trainer.epochs, spec.code) == (2, 20.0, backend.launched[0].code)
    assert ref.open().spec(2) is not None
    desired = ref.open().desired()
    assert desired is not None
    assert desired.spec == 2


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model", lambda config: replace(config, model=Component(target="models.mlp.MLP", params={"width": 9}))),
        ("data", lambda config: replace(config, data=Component(target="models.digits.Other"))),
        ("task", lambda config: replace(config, task=Component(target="mine.Task"))),
        ("seed", lambda config: replace(config, seed=1)),
        ("trainer.global_batch_size", _trainer(global_batch_size=128)),
        ("trainer.micro_batch_size", _trainer(micro_batch_size=4)),
        ("trainer.precision", _trainer(precision="bf16")),
        ("name", lambda config: replace(config, name="other")),
        ("runs", lambda config: replace(config, runs="/elsewhere")),
    ],
)
def test_what_the_steps_rest_on_cannot_change(
    ended: Callable[[JobState], RunRef], clock: ScriptedClock, overridden: Callable[[Change], list[str]], key: str, change: Change
) -> None:
    ref = ended(JobState.FAILED)
    with pytest.raises(ConfigError) as caught:
        jobs.resume(ref, overridden(change), clock=clock)
    assert caught.value.where == key
    if key not in ("name", "runs"):
        assert "checkpoint.init_from=mine" in caught.value.next
    assert ref.open().spec(2) is None
    desired = ref.open().desired()
    assert desired is not None
    assert desired.revision == 1


def test_workers_may_change(ended: Callable[[JobState], RunRef], clock: ScriptedClock, overridden: Callable[[Change], list[str]]) -> None:
    ref = ended(JobState.STOPPED)
    bounds = WorkerBounds(min=1, max=2, target=2)
    jobs.resume(ref, overridden(lambda config: replace(config, workers=bounds)), clock=clock)
    desired = ref.open().desired()
    assert desired is not None
    assert (desired.workers, desired.spec) == (bounds, 2)


def test_a_lost_run_is_taken_over(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING, step=5).begin_term()
    backend.owned = Owner.UNKNOWN
    jobs.resume(ref, clock=clock)
    run = ref.open()
    assert run.highest_term() == 2
    desired = run.desired()
    assert desired is not None
    assert desired.resumes == 2
    assert jobs.status(ref, clock=clock).state is JobState.PENDING


def test_a_dead_run_is_closed_and_goes_on(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING, step=5).begin_term()
    backend.owned = Owner.GONE
    backend.on_launch = lambda run: setattr(backend, "owned", Owner.ALIVE)
    jobs.resume(ref, clock=clock)
    assert jobs.status(ref, clock=clock).state is JobState.PENDING


def test_a_resume_that_cannot_be_launched_ends_as_failed(
    ended: Callable[[JobState], RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = ended(JobState.STOPPED)
    backend.launch_error = BackendUnavailable("no Ray")
    with pytest.raises(BackendUnavailable):
        jobs.resume(ref, clock=clock)
    status = jobs.status(ref, clock=clock)
    assert status.state is JobState.FAILED
    assert "no Ray" in status.reason
    backend.launch_error = None
    jobs.resume(ref, clock=clock)
    assert jobs.status(ref, clock=clock).state is JobState.PENDING


def test_a_resume_may_be_stopped_before_it_begins(ended: Callable[[JobState], RunRef], clock: ScriptedClock) -> None:
    ref = ended(JobState.FAILED)
    jobs.resume(ref, clock=clock)
    status = jobs.stop(ref, clock=clock)
    assert (status.state, status.step) == (JobState.STOPPED, 100)


def test_a_resume_keeps_its_variables_says_what_differs_and_takes_over_what_is_named(
    submit: Callable[..., RunRef],
    clock: ScriptedClock,
    backend: FakeBackend,
    overridden: Callable[[Change], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATA_ROOT", "/a")
    ref = submit(name="mine", environment={"DATA_ROOT": None})
    FakeController(ref.open(), clock).begin_term().end(JobState.FAILED, exit_code=1)
    monkeypatch.setenv("DATA_ROOT", "/b")
    told: list[str] = []
    jobs.resume(ref, clock=clock, tell=told.append)
    assert backend.launched[1] == backend.launched[0]
    assert told == ["the run keeps DATA_ROOT=/a; this command has /b: environment.DATA_ROOT=null takes it over"]
    FakeController(ref.open(), clock).begin_term(from_term=Term(1)).end(JobState.FAILED, exit_code=1)
    told.clear()
    named: Change = lambda config: replace(config, environment={**config.environment, "DATA_ROOT": None})  # noqa: E731
    jobs.resume(ref, overridden(named), clock=clock, tell=told.append)
    assert (backend.launched[2].number, backend.launched[2].config.environment["DATA_ROOT"]) == (2, "/b")
    assert told == []
    assert jobs.status(ref, clock=clock).environment["DATA_ROOT"] == "/b"
