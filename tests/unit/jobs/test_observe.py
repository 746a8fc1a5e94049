from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import jobs
from launcher.backends.base import Owner
from launcher.core.errors import StoreDamaged
from launcher.core.types import Term
from launcher.jobs import observe
from launcher.jobs.closing import close
from launcher.jobs.refs import RunRef
from launcher.jobs.snapshot import LAUNCH_GRACE_S, Snapshot, Verdict, judge, read_snapshot
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.run_store import LEASE_S, RunStore
from launcher.record.status import JobState, RunStatus
from tests.support.fakes import FakeBackend, FakeController, ScriptedClock

pytestmark = pytest.mark.unit

BOUNDS = WorkerBounds(min=1, max=1, target=1)
DESIRED = Desired(revision=1, state="running", spec=1, workers=BOUNDS, by="me", at="")
BASE = {Term(1): TermBase(from_term=None, checkpoint_step=None, adopted_step=None)}
RUNNING = RunStatus(run_id="r", name="r", state=JobState.RUNNING, workers=BOUNDS)
NOTHING = Snapshot(DESIRED, Term(0), {}, None)
CLAIMED = Snapshot(DESIRED, Term(1), {}, None)
SILENT = Snapshot(DESIRED, Term(1), BASE, None)
ALIVE = Snapshot(DESIRED, Term(1), BASE, RUNNING)
ENDED = Snapshot(DESIRED, Term(1), BASE, replace(RUNNING, state=JobState.FAILED))
RESUMED = Snapshot(replace(DESIRED, revision=2, resumes=Term(1)), Term(2), BASE, ENDED.written)


@pytest.mark.parametrize(
    ("snapshot", "owner", "quiet_s", "moved", "verdict"),
    [
        (ENDED, Owner.GONE, 99, False, Verdict.AS_WRITTEN),
        (ENDED, Owner.UNKNOWN, 0, False, Verdict.AS_WRITTEN),
        (NOTHING, Owner.ALIVE, 99, False, Verdict.PENDING),
        (NOTHING, Owner.UNKNOWN, 99, False, Verdict.PENDING),
        (NOTHING, Owner.GONE, 0, False, Verdict.UNSURE),
        (NOTHING, Owner.GONE, LAUNCH_GRACE_S, False, Verdict.DEAD),
        (CLAIMED, Owner.ALIVE, 0, False, Verdict.PENDING),
        (CLAIMED, Owner.GONE, LAUNCH_GRACE_S, False, Verdict.DEAD),
        (SILENT, Owner.ALIVE, 0, False, Verdict.AS_WRITTEN),
        (SILENT, Owner.GONE, 0, False, Verdict.DEAD),
        (ALIVE, Owner.ALIVE, 99, False, Verdict.AS_WRITTEN),
        (ALIVE, Owner.GONE, 0, True, Verdict.DEAD),
        (ALIVE, Owner.UNKNOWN, 0, False, Verdict.UNSURE),
        (ALIVE, Owner.UNKNOWN, 1, True, Verdict.AS_WRITTEN),
        (ALIVE, Owner.UNKNOWN, LEASE_S, False, Verdict.LOST),
        (ALIVE, Owner.UNKNOWN, LEASE_S, True, Verdict.LOST),
        (RESUMED, Owner.ALIVE, 0, False, Verdict.PENDING),
        (RESUMED, Owner.UNKNOWN, 99, False, Verdict.PENDING),
        (RESUMED, Owner.GONE, 0, False, Verdict.UNSURE),
        (RESUMED, Owner.GONE, LAUNCH_GRACE_S, False, Verdict.DEAD),
    ],
)
def test_the_verdict(snapshot: Snapshot, owner: Owner, quiet_s: float, moved: bool, verdict: Verdict) -> None:
    assert judge(snapshot, owner, quiet_s=quiet_s, moved=moved) is verdict


def test_a_run_without_a_controller_is_pending(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit()
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.reason, status.exit_code) == (JobState.PENDING, "the controller is starting", None)
    assert status.submitted_at
    ref.open().claim_term("a controller", "now")
    assert jobs.status(ref, clock=clock).state is JobState.PENDING


def test_a_controller_in_office_starts(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit()
    run = ref.open()
    run.create_base(run.claim_term("a controller", "now"), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    assert jobs.status(ref, clock=clock).state is JobState.STARTING


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
def test_an_end_is_as_written_whoever_is_gone(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend, state: JobState
) -> None:
    ref = submit()
    written = FakeController(ref.open(), clock).begin_term().end(state)
    backend.owned = Owner.GONE
    assert jobs.status(ref, clock=clock) == written
    assert clock.monotonic() == 0


def test_a_run_that_moves_is_as_written_also_from_elsewhere(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned = Owner.UNKNOWN
    clock.every(2.0, controller.beat, until=60)
    assert jobs.status(ref, clock=clock).state is JobState.RUNNING
    assert clock.monotonic() <= 2.25


def test_a_run_that_does_not_move_is_lost_after_a_lease(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit(name="mine")
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned = Owner.UNKNOWN
    status = jobs.status(ref, clock=clock)
    assert status.state is JobState.LOST
    assert "launch resume mine" in status.reason
    assert LEASE_S <= clock.monotonic() <= LEASE_S + 0.5
    stored = ref.open().status(controller.term)
    assert stored is not None
    assert stored.state is JobState.RUNNING


def test_a_dead_run_is_closed_at_once_with_all_that_it_did(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit(name="mine")
    run = ref.open()
    controller = FakeController(run, clock, state=JobState.RUNNING, step=30, train_loss=0.5).begin_term()
    controller.checkpoint(20)
    controller.segment("events", {"kind": "steps", "step": 33, "first": 31, "last": 33, "samples": [30, 33]})
    backend.owned = Owner.GONE
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.exit_code, status.term, status.step, status.train_loss) == (JobState.FAILED, 1, 2, 33, 0.5)
    assert "are gone" in status.reason
    assert "launch resume mine" in status.reason
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.checkpoint.uri) == (20, f"{run.uri}/checkpoints/{20:012d}-{1:012d}.json")
    assert run.terms() == (2, {1: BASE[Term(1)], 2: TermBase(from_term=Term(1), checkpoint_step=None, adopted_step=33)})  # type: ignore[comparison-overlap, arg-type]
    assert [event.kind for event in jobs.events(ref)] == ["steps", "ended"]
    assert clock.monotonic() == 0
    assert jobs.status(ref, clock=clock) == status
    assert run.highest_term() == 2


def test_what_never_began_is_closed_after_a_moment(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    backend.owned = Owner.GONE
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.step, status.checkpoint) == (JobState.FAILED, 0, None)
    assert "never began" in status.reason
    assert clock.monotonic() >= LAUNCH_GRACE_S


def test_a_launch_under_way_is_not_taken_for_dead(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    backend.owned = Owner.GONE
    clock.at(1.0, lambda: setattr(backend, "owned", Owner.ALIVE))
    assert jobs.status(ref, clock=clock).state is JobState.PENDING
    assert ref.open().highest_term() == 0


def test_an_end_written_while_the_owner_goes_is_believed(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()

    def owner(run: RunStore) -> Owner:
        controller.end(JobState.SUCCEEDED)
        return Owner.GONE

    backend.owner = owner  # type: ignore[method-assign]
    assert jobs.status(ref, clock=clock).state is JobState.SUCCEEDED
    assert ref.open().highest_term() == 1


def test_two_closers_end_it_once_for_readers(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit()
    run = ref.open()
    FakeController(run, clock, state=JobState.RUNNING).begin_term()
    seen = read_snapshot(run)
    assert close(ref, run, seen, state=JobState.FAILED, reason="first", clock=clock)
    assert not close(ref, run, seen, state=JobState.STOPPED, reason="second", clock=clock)
    assert jobs.status(ref, clock=clock).reason == "first"
    assert [event.facts["reason"] for event in jobs.events(ref)] == ["first"]


def test_a_controller_that_takes_office_meanwhile_wins(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    run = ref.open()
    FakeController(run, clock, state=JobState.RUNNING).begin_term()
    seen = read_snapshot(run)
    original = RunStore.claim_just
    late: list[FakeController] = []

    def claim_and_be_overtaken(self: RunStore, term: Term, holder: str, started_at: str) -> bool:
        won = original(self, term, holder, started_at)
        if not late:
            late.append(FakeController.__new__(FakeController))
            late[0].__init__(run, clock, state=JobState.RUNNING, step=7)  # type: ignore[misc]
            late[0].begin_term(from_term=Term(1))
        return won

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "claim_just", claim_and_be_overtaken)
        assert not close(ref, run, seen, state=JobState.FAILED, reason="dead", clock=clock)
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.step, status.term) == (JobState.RUNNING, 7, 3)


def test_a_run_whose_stop_was_asked_for_is_closed_as_stopped(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend
) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    assert jobs.stop(ref, clock=clock).state is JobState.RUNNING
    backend.owned = Owner.GONE
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.exit_code) == (JobState.STOPPED, 3)


def test_the_list_is_newest_first_and_watches_all_at_once(
    submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend, runs: Path
) -> None:
    for number in range(5):
        ref = submit(name=f"run-{number}")
        clock.advance(1.0)
        FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned = Owner.UNKNOWN
    began = clock.monotonic()
    listed = jobs.list_runs(str(runs), clock=clock)
    assert [status.name for status in listed] == [f"run-{number}" for number in (4, 3, 2, 1, 0)]
    assert {status.state for status in listed} == {JobState.LOST}
    assert clock.monotonic() - began <= LEASE_S + 0.5


def test_a_broken_record_does_not_hide_the_others(submit: Callable[..., RunRef], clock: ScriptedClock, runs: Path) -> None:
    broken, whole = submit(name="broken"), submit(name="whole")
    (runs / broken.run_id / "desired" / "000000000001.json").unlink()
    listed = {status.name: status for status in jobs.list_runs(str(runs), clock=clock)}
    assert listed["whole"].state is JobState.PENDING
    assert "not whole" in listed["broken"].reason
    with pytest.raises(StoreDamaged, match="not whole"):
        jobs.status(broken, clock=clock)
    assert whole.name == "whole"


def test_watching_goes_on_through_lost_until_the_end(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned = Owner.UNKNOWN
    clock.at(20.0, controller.beat)
    clock.at(22.0, lambda: controller.end(JobState.SUCCEEDED))
    states: list[JobState] = []
    for status in jobs.watch(ref, clock=clock):
        if not states or states[-1] is not status.state:
            states.append(status.state)
    assert states == [JobState.RUNNING, JobState.LOST, JobState.RUNNING, JobState.SUCCEEDED]
    assert observe.POLL_S < LAUNCH_GRACE_S


def test_a_claimed_term_without_a_base_is_taken_over(submit: Callable[..., RunRef], clock: ScriptedClock, backend: FakeBackend) -> None:
    ref = submit()
    run = ref.open()
    FakeController(run, clock, state=JobState.RUNNING).begin_term()
    run.claim_term("a controller that died at once", "now")
    backend.owned = Owner.GONE
    status = jobs.status(ref, clock=clock)
    assert (status.state, status.term) == (JobState.FAILED, 3)


def test_the_last_words_of_a_dead_run_are_told(submit: Callable[..., RunRef], backend: FakeBackend, clock: ScriptedClock) -> None:
    ref = submit()
    FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    backend.owned, backend.said = Owner.GONE, "no space left on device"
    assert "no space left on device" in jobs.status(ref, clock=clock).reason
