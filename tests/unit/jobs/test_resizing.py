from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from launcher import jobs
from launcher.backends.base import Owner
from launcher.core.errors import ConfigError, RunStateError
from launcher.jobs.refs import RunRef
from launcher.jobs.resizing import SizeRequest, Waited, size_wanted, why_not
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock, job_config

pytestmark = pytest.mark.unit

REF = RunRef("/runs", "mlp-aaaaaa", "mine")  # type: ignore[arg-type]
NOW = WorkerBounds(min=2, max=4, target=4)


def bounds(low: int, high: int, target: int | None = None) -> WorkerBounds:
    return WorkerBounds(min=low, max=high, target=high if target is None else target)


@pytest.fixture
def running(submit: Callable[..., RunRef], clock: ScriptedClock) -> tuple[RunRef, FakeController]:
    """A run of 2..4 workers with 4, whose batch has 8 shards."""
    ref = submit(name="mine", workers="2..4")
    return ref, FakeController(ref.open(), clock, state=JobState.RUNNING, world_size=4, generation=1).begin_term()


def in_force(ref: RunRef) -> Desired:
    desired = ref.open().desired()
    assert desired is not None
    return desired


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (3, bounds(2, 4, 3)),
        ("3", bounds(2, 4, 3)),
        (" 2 ", bounds(2, 4, 2)),
        ("1..8", bounds(1, 8)),
        ("3..3", bounds(3, 3)),
        ("2..4", bounds(2, 4)),
    ],
)
def test_a_number_is_a_target_and_a_range_the_bounds(size: int | str, wanted: WorkerBounds) -> None:
    assert size_wanted(size, replace(NOW, target=2), job_config("/runs"), REF) == wanted


@pytest.mark.parametrize(
    ("size", "what", "expected", "next"),
    [
        ("x", "not clear", "such as 3, or bounds such as 2..6", ""),
        ("", "not clear", "such as 3", ""),
        ("-1", "not clear", "such as 3", ""),
        ("2..", "not clear", "such as 3", ""),
        ("1.5", "not clear", "such as 3", ""),
        ("\u0663", "not clear", "such as 3", ""),
        ("0", "at least one", "2 to 4", "launch stop mine"),
        ("0..3", "do not fit together", "1 <= A <= B", ""),
        ("9..2", "do not fit together", "1 <= A <= B", ""),
        ("5", "5 workers would be outside", "within 2..4", "`launch resize mine 2..5`"),
        ("1", "1 worker would be outside", "within 2..4", "`launch resize mine 1..4` lowers the bound and asks for 4; then `launch resize mine 1`"),
        ("9", "9 workers are more", "at most 8 workers (global_batch_size 64 / micro_batch_size 8", "trainer.micro_batch_size=4"),
        ("2..65", "65 workers are more", "at most 8", "trainer.global_batch_size=520"),
        (10**30, "more than the batch", "at most 8", "checkpoint.init_from=mine"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_had_says_what_can(size: int | str, what: str, expected: str, next: str) -> None:
    with pytest.raises(ConfigError) as caught:
        size_wanted(size, NOW, job_config("/runs"), REF)
    error = caught.value
    assert what in error.what
    assert expected in error.expected
    assert next in error.next
    assert error.where == REF.uri
    assert error.given


def test_a_request_is_a_new_revision_and_changes_the_size_alone(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, _ = running
    before = in_force(ref)
    request = jobs.resize(ref, "1..6", clock=clock)
    assert (request.workers, request.before, request.revision, request.changed) == (bounds(1, 6), NOW, 2, True)
    after = in_force(ref)
    assert replace(after, revision=1, workers=NOW, by=before.by, at=before.at) == before
    assert jobs.resize(ref, 5, clock=clock).workers == bounds(1, 6, 5)


def test_the_same_size_again_writes_nothing(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, _ = running
    for size in (4, "2..4"):
        assert not jobs.resize(ref, size, clock=clock).changed
    assert in_force(ref).revision == 1


def test_a_refused_size_writes_nothing(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, _ = running
    with pytest.raises(ConfigError):
        jobs.resize(ref, 9, clock=clock)
    assert in_force(ref).revision == 1


def test_who_loses_the_race_looks_again(
    running: tuple[RunRef, FakeController], clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, _ = running
    original, others = RunStore.create_desired, []

    def overtaken(self: RunStore, wanted: Any) -> bool:
        if not others:
            others.append(None)
            jobs.resize(ref, "1..3", clock=clock)
        return original(self, wanted)

    monkeypatch.setattr(RunStore, "create_desired", overtaken)
    request = jobs.resize(ref, 2, clock=clock)
    assert (request.revision, request.before, request.workers) == (3, bounds(1, 3), bounds(1, 3, 2))


def test_who_loses_the_race_to_a_stop_is_refused(
    running: tuple[RunRef, FakeController], clock: ScriptedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, _ = running
    original, others = RunStore.create_desired, []

    def overtaken(self: RunStore, wanted: Any) -> bool:
        if not others:
            others.append(None)
            jobs.stop(ref, clock=clock)
        return original(self, wanted)

    monkeypatch.setattr(RunStore, "create_desired", overtaken)
    with pytest.raises(RunStateError, match="asked to stop"):
        jobs.resize(ref, 2, clock=clock)
    assert in_force(ref).state == "stopped"


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
def test_an_ended_run_is_refused_with_the_way_on(running: tuple[RunRef, FakeController], clock: ScriptedClock, state: JobState) -> None:
    ref, controller = running
    controller.end(state)
    with pytest.raises(RunStateError, match="has ended") as caught:
        jobs.resize(ref, 3, clock=clock)
    assert "`launch resume mine workers=A..B" in caught.value.next
    assert ("trainer.epochs" in caught.value.next) == (state is JobState.SUCCEEDED)
    assert in_force(ref).revision == 1


def test_a_stopping_run_is_refused(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, controller = running
    controller.write(state=JobState.STOPPING)
    with pytest.raises(RunStateError, match="asked to stop"):
        jobs.resize(ref, 3, clock=clock)


def test_a_run_that_has_not_begun_begins_at_that_size(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit(workers="1..4")
    jobs.resize(ref, 2, clock=clock)
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.workers) == (JobState.PENDING, bounds(1, 4, 2))


def wait(ref: RunRef, request: SizeRequest, clock: ScriptedClock, **options: float) -> Waited:
    *rest, last = jobs.follow_resize(ref, request, clock=clock, **options)
    assert last.over
    assert not any(each.over for each in rest)
    return last


def test_the_wait_ends_when_the_size_is_there(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, controller = running
    request = jobs.resize(ref, 3, clock=clock)
    clock.at(2.0, lambda: controller.write(workers=request.workers))
    clock.at(3.0, lambda: controller.write(state=JobState.RESIZING))
    clock.at(4.0, lambda: controller.write(world_size=3, generation=2))
    clock.at(5.0, lambda: controller.write(state=JobState.RUNNING))
    last = wait(ref, request, clock)
    assert (last.why, last.status.generation) == ("", 2)
    assert 5.0 <= clock.monotonic() < 6.0


def test_the_wait_ends_with_the_capacity_that_is_missing(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, controller = running
    request = jobs.resize(ref, "2..6", clock=clock)
    clock.at(4.0, lambda: controller.write(workers=request.workers, waiting_for="2 workers with 1 GPU each"))
    last = wait(ref, request, clock)
    assert last.why == "it has 4 of 6 and waits for 2 workers with 1 GPU each; the wish stays"
    assert clock.monotonic() < 5.0


def test_the_wait_ends_in_any_case(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, controller = running
    request = jobs.resize(ref, 3, clock=clock)
    clock.at(2.0, lambda: controller.write(workers=request.workers, reason="rank 3 is busy"))
    assert wait(ref, request, clock, timeout_s=30).why == "it has 4 of 3 after 30 s, RUNNING: rank 3 is busy; the wish stays"
    assert 30.0 <= clock.monotonic() < 31.0


def test_a_request_of_somebody_else_ends_the_wait(running: tuple[RunRef, FakeController], clock: ScriptedClock) -> None:
    ref, _ = running
    request = jobs.resize(ref, 3, clock=clock)
    clock.at(1.0, lambda: jobs.resize(ref, "2..6", clock=clock))
    assert "asked for 6 workers (2..6) meanwhile" in wait(ref, request, clock).why


STATUS = RunStatus(run_id="r", name="mine", state=JobState.RUNNING, world_size=3, workers=bounds(2, 4, 3))
REQUEST = SizeRequest(bounds(2, 4, 3), NOW, 2)
DESIRED = Desired(revision=2, state="running", spec=1, workers=REQUEST.workers, by="me@here", at="")


@pytest.mark.parametrize(
    ("status", "desired", "why"),
    [
        ({}, {}, ""),
        ({"state": JobState.RESIZING}, {}, None),
        ({"workers": NOW}, {}, None),
        ({"workers": NOW, "waiting_for": "something older"}, {}, None),
        ({"world_size": 4, "waiting_for": "something older"}, {}, None),
        ({"state": JobState.FAILED}, {}, "it has ended: FAILED"),
        ({"state": JobState.STOPPING}, {}, "it is asked to stop"),
        ({}, {"state": "stopped"}, "it is asked to stop"),
        ({"state": JobState.LOST, "reason": "no sign of life"}, {}, "no sign of life; who takes it over fulfils the wish"),
    ],
)
def test_why_a_size_is_not_there(status: dict[str, Any], desired: dict[str, Any], why: str | None) -> None:
    assert why_not(replace(STATUS, **status), REQUEST, replace(DESIRED, **desired)) == why


def test_a_lost_run_keeps_the_request_for_who_takes_it_over(
    running: tuple[RunRef, FakeController], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref, _ = running
    backend.owned = Owner.UNKNOWN
    request = jobs.resize(ref, 3, clock=clock)
    assert wait(ref, request, clock).status.state is JobState.LOST
    jobs.resume(ref, clock=clock)
    assert in_force(ref).workers == request.workers


def test_a_resume_keeps_what_a_resize_left_unless_it_names_other_bounds(
    running: tuple[RunRef, FakeController], clock: ScriptedClock, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.config.load.apply_overrides", lambda config, overrides: config)
    ref, controller = running
    jobs.resize(ref, "1..6", clock=clock)
    jobs.resize(ref, 5, clock=clock)
    controller.end(JobState.FAILED)
    jobs.resume(ref, clock=clock)
    assert (in_force(ref).workers, in_force(ref).spec) == (bounds(1, 6, 5), 1)
    FakeController(ref.open(), clock).begin_term(from_term=controller.term).end(JobState.FAILED)
    jobs.resume(ref, ["workers=2..4"], clock=clock)
    assert in_force(ref).workers == NOW


def test_what_has_to_fit_at_a_resume_is_the_lower_bound_that_a_resize_left(
    running: tuple[RunRef, FakeController], clock: ScriptedClock, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[WorkerBounds] = []
    original = backend.place
    monkeypatch.setattr(backend, "place", lambda spec: (placed.append(spec.config.workers), original(spec))[1])
    ref, controller = running
    for size in ("1..3", "6..8"):
        jobs.resize(ref, size, clock=clock)
        controller.end(JobState.FAILED)
        jobs.resume(ref, clock=clock)
        controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term(from_term=controller.term)
    assert placed == [bounds(1, 4), bounds(4, 4)]
