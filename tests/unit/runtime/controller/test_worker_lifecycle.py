"""How single workers come to their end, and what that means for the job."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Step
from launcher.record import events as r
from launcher.runtime.controller.checkpoint_committer import Save
from launcher.runtime.controller.effects import EndWorkers, StartWorkers
from launcher.runtime.controller.inbox import CheckpointDecided
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.group import Phase
from tests.unit.runtime.controller.harness import G0, G1, G2, A, B, C, D, Harness, beat, described, desired

pytestmark = pytest.mark.unit


def user_error(step: int | None = 7) -> m.Error:
    reason = "ValueError: no\nTraceback ..."
    return m.Error(
        reason=reason, exit_code=ExitCode.JOB_FAILED, step=Step(step) if step is not None else None, generation=G1, recoverable=True
    )


def commit_step(harness: Harness, step: int) -> None:
    """All members of the present generation hold this step, and the controller has looked."""
    for worker in harness.group.ranks:
        harness.hear(worker, beat(harness.group.generation, step))
    for work in harness.lifecycle.look(harness.now):
        harness.controller.process(work)


# lost


def test_a_lost_member_is_ended_and_the_others_go_on(harness: Harness) -> None:
    harness.training(2)
    harness.clock.advance(5.0)
    work = harness.lifecycle.lose(B, "worker w1 died\nand more of it", "lost", detect_s=0.5)
    assert work == [EndWorkers((B,)), e.Gone(B, "worker w1 died", "lost")]
    assert harness.events() == [r.WorkerLost(worker=B, rank=1, pid=101, node="host-w1", reason="worker w1 died")]
    assert B not in harness.registry
    assert harness.tracker.begun_at == 5.0
    assert harness.lifecycle.lose(B, "worker w1 died", "lost") == [], "it was lost before"


@pytest.mark.parametrize(("cause", "kind"), [("lost", r.WorkerLost), ("error", r.WorkerLost), ("evicted", r.WorkerEvicted)])
def test_the_record_says_whether_the_controller_ended_it(harness: Harness, cause: str, kind: type[r.Event]) -> None:
    harness.training(2)
    harness.lifecycle.lose(B, "why", cause)
    assert [type(event) for event in harness.events()] == [kind]


def test_who_is_lost_is_not_found_silent_afterwards(harness: Harness) -> None:
    harness.training(2)
    harness.controller.process(harness.lifecycle.lose(B, "it died", "lost"))
    harness.clock.advance(10.0)
    harness.hear(A, beat())
    assert list(harness.lifecycle.look(harness.now)) == []


def test_one_that_is_no_member_disturbs_nobody(harness: Harness) -> None:
    harness.training(2)
    [spare] = harness.warm(1)
    harness.quiet()
    harness.controller.process(harness.lifecycle.lose(spare, "it died", "lost"))
    assert harness.events() == [r.WorkerLost(worker=spare, rank=None, pid=102, node="host-w2", reason="it died")]
    assert (harness.group.phase, harness.group.ranks, harness.tracker.begun_at) == (Phase.TRAINING, (A, B), None)


def test_a_newcomer_that_was_called_into_the_next_generation_is_a_member(harness: Harness) -> None:
    """It may hold what the others wait for."""
    harness.training(2)
    newcomers = harness.warm(1)
    harness.controller.process([e.ChangeWanted(join=newcomers)])
    for worker in (A, B, C):
        harness.hear(worker, m.Prepared(G2, None))
    harness.controller.process(harness.lifecycle.lose(C, "it died", "lost"))
    assert (harness.group.phase, harness.tracker.begun_at) == (Phase.LEAVING, 0.0)


def test_one_more_that_is_lost_while_the_others_leave_names_the_change(harness: Harness) -> None:
    harness.training(3)
    harness.controller.process(harness.lifecycle.lose(C, "worker w2 died", "lost", detect_s=0.5))
    harness.clock.advance(1.0)
    harness.controller.process(harness.lifecycle.lose(B, "worker w1 is silent", "evicted", detect_s=3.0))
    harness.recover(1)
    harness.first_steps(2)
    [resized] = harness.of_kind(r.Resized)
    assert (resized.cause, resized.reason, resized.from_size, resized.to_size) == ("evicted", "worker w1 is silent", 3, 1)
    assert resized.detect_s == 0.5, "of the first, with which it began"


def test_after_the_end_nobody_is_lost(harness: Harness) -> None:
    harness.training(2)
    harness.controller.process([e.Failed("out of luck", ExitCode.JOB_FAILED)])
    harness.quiet()
    assert harness.lifecycle.lose(B, "it died", "lost") == []
    assert harness.events() == []


# what the failure policy says


def test_an_error_of_the_job_is_tried_once_more_on_the_others(harness: Harness) -> None:
    harness.training(2)
    work = harness.lifecycle.lose(B, "ValueError: no", "error", error=user_error())
    assert work == [EndWorkers((B,)), e.Gone(B, "ValueError: no", "error")]


def test_an_error_that_comes_again_fails_the_job_with_the_users_traceback(harness: Harness) -> None:
    harness.training(2)
    harness.controller.process(harness.lifecycle.lose(B, user_error().reason, "error", error=user_error()))
    [end, failed] = harness.lifecycle.lose(A, user_error().reason, "error", error=user_error())
    assert end == EndWorkers((A,))
    assert isinstance(failed, e.Failed)
    assert failed.exit_code is ExitCode.JOB_FAILED
    assert "ValueError: no" in failed.reason
    assert "Traceback ..." in failed.reason


def test_what_the_launcher_raises_fails_the_job_with_its_exit_code(harness: Harness) -> None:
    harness.training(2)
    error = m.Error(reason="no store", exit_code=ExitCode.INFRASTRUCTURE, step=Step(7), generation=G1, recoverable=False)
    assert harness.lifecycle.lose(B, "no store", "error", error=error)[-1] == e.Failed("no store", ExitCode.INFRASTRUCTURE)


@pytest.mark.parametrize(("recoverable", "fails"), [(True, False), (False, True)], ids=["the job's code", "the launcher"])
def test_an_error_before_training_is_that_of_a_start(harness: Harness, *, recoverable: bool, fails: bool) -> None:
    """The job's own code may do better on the other worker; what the launcher raises it raises everywhere."""
    harness.controller.begin([])
    harness.controller.process([StartWorkers(2)])
    error = m.Error(reason="no", exit_code=ExitCode.INFRASTRUCTURE, step=None, generation=G0, recoverable=recoverable)
    work = harness.lifecycle.lose(B, "no", "error", error=error)
    assert work[1:] == [e.Failed("no", ExitCode.INFRASTRUCTURE) if fails else e.Gone(B, "no", "error")]


def start_and_lose(harness: Harness) -> None:
    """A newcomer that dies while it builds the job."""
    harness.controller.process([StartWorkers(1)])
    [worker] = harness.workers.started[-1][0]
    harness.controller.process(harness.lifecycle.lose(worker, f"worker {worker} died", "lost"))


def test_after_some_newcomers_that_failed_no_more_are_offered_until_a_person_changes_the_size(harness: Harness) -> None:
    harness.training(1)
    said = []
    for _ in range(3):
        start_and_lose(harness)
        said.append(harness.of_kind(r.Policy))
    assert said[:2] == [[], []]
    [told] = said[2]
    assert told.reason.startswith("worker w3 died; 3 workers in a row could not be started")
    assert "3 workers in a row" in harness.lifecycle.no_offers
    harness.lifecycle.desired_changed()
    assert harness.lifecycle.no_offers == ""


def test_a_newcomer_that_became_ready_breaks_the_row(harness: Harness) -> None:
    harness.training(1)
    start_and_lose(harness)
    start_and_lose(harness)
    harness.warm(1)
    start_and_lose(harness)
    assert harness.lifecycle.no_offers == ""


def join_and_lose(harness: Harness, step: int, *, commits: bool) -> None:
    """A newcomer is taken in at a step and lost; `commits`: not before a step more is committed with it."""
    newcomers = harness.warm(1)
    harness.change(newcomers, cause="grow", step=step)
    commit_step(harness, step + commits)
    harness.controller.process(harness.lifecycle.lose(newcomers[0], "it died", "lost"))
    harness.recover(step + 1)


@pytest.mark.parametrize("commits", [False, True])
def test_newcomers_that_are_lost_before_a_step_is_committed_with_them_are_counted(harness: Harness, *, commits: bool) -> None:
    harness.training(1)
    commit_step(harness, 1)
    for number in range(3):
        join_and_lose(harness, 10 * number + 1, commits=commits)
    assert ("newcomers were lost 3 times" in harness.lifecycle.no_offers) == (not commits)


def test_members_of_the_first_generation_are_no_newcomers(harness: Harness) -> None:
    harness.controller.begin([])
    harness.change(harness.warm(4), cause="start")
    for worker in (D, C, B):
        harness.controller.process(harness.lifecycle.lose(worker, "it died", "lost"))
        harness.recover(0)
    assert harness.lifecycle.no_offers == ""


def test_newcomers_that_are_lost_before_they_were_called_failed_to_start(harness: Harness) -> None:
    harness.training(1)
    for newcomer in harness.warm(3):
        harness.controller.process([e.ChangeWanted(join=(newcomer,))])
        harness.controller.process(harness.lifecycle.lose(newcomer, "it died", "lost"))
        assert harness.group.phase is Phase.TRAINING
    assert "3 workers in a row could not be started" in harness.lifecycle.no_offers


# looking after them


def test_two_that_fall_silent_at_once_are_lost_one_after_the_other(harness: Harness) -> None:
    harness.training(3)
    ended = []
    for _ in range(4):
        harness.clock.advance(1.0)
        harness.hear(A, beat(applied=1))
        for work in harness.lifecycle.look(harness.now):
            harness.controller.process(work)
        ended.append(list(harness.workers.ended))
    assert ended == [[], [], [], [B, C]]
    evicted = harness.of_kind(r.WorkerEvicted)
    assert [(event.worker, event.reason.partition(" for ")[0]) for event in evicted] == [
        (B, "worker w1 has been silent"),
        (C, "worker w2 has been silent"),
    ]
    assert (harness.group.phase, harness.group.awaited) == (Phase.LEAVING, (A,)), "what the first loss began goes on without the second"
    assert harness.leadership.end is None


def test_the_last_member_that_is_silent_takes_the_state_with_it() -> None:
    harness = Harness(desired(2, 4, 2))
    harness.training(2)
    for _ in range(4):
        harness.clock.advance(1.0)
        for work in harness.lifecycle.look(harness.now):
            harness.controller.process(work)
    told = [type(event) for event in harness.events() if not isinstance(event, r.GenerationPrepared)]
    assert told == [r.WorkerEvicted, r.WorkerEvicted, r.AllWorkersLost, r.TermStarted]
    assert harness.leadership.term == 2


def test_all_that_wait_for_each_other_are_let_out_and_nobody_is_ended(harness: Harness) -> None:
    harness.training(2)
    verdicts = []
    for _ in range(62):
        harness.clock.advance(1.0)
        for worker in (A, B):
            harness.hear(worker, beat(applied=1, waiting=True))
        verdicts += harness.lifecycle.look(harness.now)
        if verdicts:
            break
    [[stuck]] = verdicts
    assert isinstance(stuck, e.Stuck)
    assert stuck.reason.startswith("all 2 workers have been waiting inside a collective")


def test_steps_that_take_long_give_workers_longer(harness: Harness) -> None:
    harness.training(2)
    ended = []
    harness.hear(A, beat(applied=1, step_s=1.0))
    for _ in range(7):
        harness.clock.advance(1.0)
        harness.hear(A, beat(applied=1, step_s=1.0))
        for work in harness.lifecycle.look(harness.now):
            harness.controller.process(work)
        ended.append(list(harness.workers.ended))
    assert ended == [*([[]] * 6), [B]], "six steps of a second are longer than elastic.silence_s"


def test_a_placed_worker_that_does_not_become_ready_in_time_is_ended() -> None:
    harness = Harness(elastic__capacity_timeout_s=30.0)
    harness.training(1)
    harness.controller.process([StartWorkers(2)])
    harness.answer(described(B))
    harness.quiet()
    harness.clock.advance(30.0)
    harness.hear(A, beat())
    assert list(harness.lifecycle.look(harness.now)) == []
    harness.clock.advance(0.5)
    [[end, gone]] = harness.lifecycle.look(harness.now)
    reason = "worker w1 did not become ready within 30 s (elastic.capacity_timeout_s)"
    assert (end, gone) == (EndWorkers((B,)), e.Gone(B, reason, "evicted"))
    assert C in harness.registry, "it has no place yet"


# not needed


def test_workers_that_are_not_needed_are_ended_without_a_word(harness: Harness) -> None:
    harness.training(1)
    harness.warm(2)
    harness.quiet()
    work = harness.lifecycle.dismiss((B, C))
    assert work == [EndWorkers((B, C)), e.Gone(B, "it is not needed", "cancelled"), e.Gone(C, "it is not needed", "cancelled")]
    assert (set(harness.registry.records), harness.events()) == ({A}, [])
    assert harness.lifecycle.dismiss(()) == []


# released


@dataclass(frozen=True)
class Upload:
    """How long one that is released at 5 s, to be taken away at `leave_by`, may still upload."""

    leave_by: float | None
    until: float


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(Upload(None, 605.0), id="nobody takes it away"),
        pytest.param(Upload(25.0, 35.0), id="it drains"),
        pytest.param(Upload(3.0, 15.0), id="its deadline is over"),
    ],
)
def test_one_that_was_released_may_upload_for_a_while(harness: Harness, upload: Upload) -> None:
    harness.training(2)
    harness.clock.advance(5.0)
    harness.registry.records[B].leave_by = upload.leave_by
    harness.lifecycle.release((B,))
    assert harness.events() == [r.WorkerReleased(worker=B)]
    harness.clock.advance(upload.until - 5.0)
    harness.hear(A, beat())
    assert list(harness.lifecycle.look(harness.now)) == []
    harness.clock.advance(0.5)
    assert list(harness.lifecycle.look(harness.now)) == [[EndWorkers((B,))]]
    assert (harness.lifecycle.released, list(harness.lifecycle.look(harness.now))) == ((), [])


@pytest.mark.parametrize("uploaded", [False, True])
def test_what_one_that_left_has_not_uploaded_is_abandoned(harness: Harness, *, uploaded: bool) -> None:
    harness.training(2)
    harness.committer.begins(Save(Step(5), G1))
    harness.change(leave=(B,), step=5)
    harness.committer.begins(Save(Step(6), G2))
    assert harness.lifecycle.let_go(B, uploaded=uploaded) == [EndWorkers((B,))]
    abandoned = [(item.step, item.failure) for item in harness.items() if isinstance(item, CheckpointDecided)]
    expected = [(5, "worker w1 ended before it had uploaded its part")] if not uploaded else []
    assert abandoned == expected, "those of the generation without it go on"
    assert harness.lifecycle.let_go(B, uploaded=uploaded) == []


# drained


def test_a_drain_keeps_the_earlier_deadline(harness: Harness) -> None:
    harness.training(2)
    deadlines = []
    for now, seconds in ((0.0, 20.0), (5.0, 20.0), (6.0, 4.0)):
        harness.clock.advance(now - harness.now)
        harness.lifecycle.drain(B, seconds, "why")
        deadlines.append(harness.registry.records[B].leave_by)
    assert deadlines == [20.0, 20.0, 10.0]
    assert [event.deadline_s for event in harness.of_kind(r.WorkerDraining)] == [20.0, 20.0, 4.0]


def test_newcomers_have_joined_when_their_generation_is_formed(harness: Harness) -> None:
    harness.training(1)
    harness.clock.advance(7.0)
    harness.change(harness.warm(1), cause="grow", step=3)
    assert [harness.registry.records[worker].joined_at for worker in (A, B)] == [0.0, 7.0]
