from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher import jobs
from launcher.backends.base import Owner
from launcher.jobs.refs import RunRef
from launcher.record.run_store import LEASE_S
from launcher.record.status import JobState
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock

pytestmark = pytest.mark.unit


def test_a_living_controller_is_asked_and_left_to_it(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    assert jobs.stop(ref, clock=clock).state is JobState.RUNNING
    jobs.stop(ref, clock=clock)
    desired = ref.open().desired()
    assert desired is not None
    assert (desired.revision, desired.state) == (2, "stopped")
    assert ref.open().highest_term() == 1
    assert backend.removed == []


def test_where_the_owner_is_gone_it_is_closed(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING, step=5).begin_term()
    backend.owned = Owner.GONE
    status = jobs.stop(ref, clock=clock)
    assert (status.state, status.exit_code, status.step) == (JobState.STOPPED, 3, 5)
    assert backend.removed == [ref.run_id]


def test_where_the_controller_is_silent_it_is_closed_and_says_what_remains(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned, backend.remains = Owner.UNKNOWN, "its processes were started on another machine"
    status = jobs.stop(ref, clock=clock)
    assert status.state is JobState.STOPPED
    assert "another machine" in status.reason
    assert clock.monotonic() >= LEASE_S


def test_a_pending_run_never_starts(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    status = jobs.stop(ref, clock=clock)
    assert (status.state, status.step) == (JobState.STOPPED, 0)
    assert backend.removed == [ref.run_id]


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
def test_an_ended_run_is_left_as_it_is(submit: Callable[..., RunRef], clock: ScriptedClock, state: JobState) -> None:
    ref = submit()
    written = FakeController(ref.open(), clock).begin_term().end(state)
    assert jobs.stop(ref, clock=clock) == written
    desired = ref.open().desired()
    assert desired is not None
    assert desired.revision == 1


def test_an_end_that_comes_while_it_is_removed_stays(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned = Owner.UNKNOWN

    def remove(run: object) -> str:
        controller.end(JobState.SUCCEEDED)
        return ""

    backend.remove = remove  # type: ignore[method-assign, assignment]
    assert jobs.stop(ref, clock=clock).state is JobState.SUCCEEDED
