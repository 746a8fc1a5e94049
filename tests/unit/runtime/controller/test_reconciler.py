"""Desired against observed: what is offered, cancelled and changed, under which cause, and what the record says of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import WorkerId
from launcher.record import events as r
from launcher.record.status import JobState
from launcher.runtime.controller.effects import EndWorkers, StartWorkers, Work
from launcher.runtime.controller.inbox import DesiredChanged
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Outcome
from tests.unit.runtime.controller.harness import A, B, C, Harness, beat, described, desired

pytestmark = pytest.mark.unit


def look(harness: Harness) -> list[Work]:
    """What the reconciler wants now, whenever it looked last."""
    harness.reconciler.soon()
    return harness.reconciler.look(harness.now)


def resize(harness: Harness, minimum: int, maximum: int, target: int) -> None:
    """A person changes the size."""
    revision = harness.leadership.desired.revision + 1
    harness.controller.handle(DesiredChanged(desired(minimum, maximum, target, revision=revision)))
    harness.quiet()


# when


def test_it_looks_at_its_interval_and_when_something_has_changed(harness: Harness) -> None:
    harness.controller.begin([])
    assert harness.reconciler.look(0.0) == [StartWorkers(2)]
    assert harness.reconciler.look(0.2) == []
    assert harness.reconciler.look(0.25) == [StartWorkers(2)], "nobody has carried it out"
    harness.reconciler.soon()
    assert harness.reconciler.look(0.26) == [StartWorkers(2)]


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(lambda harness: harness.hear(C, m.Ready(m.Job("cpu", 100, 640), 1, False, "", 0.0, 0.0)), id="ready"),
        pytest.param(lambda harness: harness.hear(A, m.Draining("SIGTERM", 20.0, "")), id="draining"),
        pytest.param(lambda harness: resize(harness, 1, 4, 4), id="resize"),
        pytest.param(lambda harness: harness.controller.process([e.Evict(C, "why")]), id="evicted"),
        pytest.param(lambda harness: harness.controller.process([e.AllLost("why")]), id="rolled back"),
    ],
)
def test_what_may_call_for_a_decision_is_looked_at_at_once(harness: Harness, happens: Callable[[Harness], None]) -> None:
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 3)
    harness.warm(1)
    look(harness)
    slow = (WorkerId("whoever was slow before this look"),)
    harness.status.stragglers = slow
    harness.reconciler.look(harness.now)
    assert harness.status.stragglers == slow
    happens(harness)
    harness.reconciler.look(harness.now)
    assert harness.status.stragglers == ()


# offers


def test_workers_are_offered_up_to_the_target_and_the_record_says_so(harness: Harness) -> None:
    harness.controller.begin([])
    harness.quiet()
    assert look(harness) == [StartWorkers(2)]
    [policy] = harness.of_kind(r.Policy)
    assert policy.reason.startswith("offer 2 workers more: 2 wanted")
    harness.controller.process([StartWorkers(2)])
    assert look(harness) == []


def test_where_no_more_are_offered_none_is_started(harness: Harness) -> None:
    harness.controller.begin([])
    for _ in range(3):
        harness.controller.process([StartWorkers(1)])
        harness.controller.process(harness.lifecycle.lose(harness.workers.started[-1][0][0], "it died", "lost"))
    assert look(harness) == []


def test_offers_beyond_the_target_are_cancelled_the_newest_first(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 4, 4)
    harness.controller.process([StartWorkers(2)])
    resize(harness, 1, 4, 3)
    late = WorkerId("w3")
    assert look(harness) == [EndWorkers((late,)), e.Gone(late, "it is not needed", "cancelled")]
    assert harness.of_kind(r.OffersCancelled) == [r.OffersCancelled(workers=(late,), reason="cancel w3 beyond the 3 wanted")]


# changes, and their causes


def started(harness: Harness) -> None:
    harness.controller.begin([])
    harness.warm(2)


def grown(harness: Harness) -> None:
    """A third is ready, and the last change is a while ago."""
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 4)
    harness.warm(2)
    harness.clock.advance(11.0)


def shrunk(harness: Harness) -> None:
    """As a new controller may find it: nobody has asked this one."""
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 1)


def grown_as_asked(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 4, 3)
    harness.warm(1)


def shrunk_as_asked(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 4, 1)


def drained(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.drain(B, 20.0, "why")


def drained_below_the_minimum(harness: Harness) -> None:
    harness.training(2)
    harness.leadership.desired = desired(2, 4, 2)
    harness.lifecycle.drain(B, 5.0, "why")


@pytest.mark.parametrize(
    ("begun", "join", "leave", "cause", "hold"),
    [
        pytest.param(started, (A, B), (), "start", False, id="start"),
        pytest.param(grown, (C, WorkerId("w3")), (), "grow", False, id="grow"),
        pytest.param(shrunk, (), (B,), "shrink", False, id="shrink"),
        pytest.param(grown_as_asked, (C,), (), "resize", False, id="grow as asked"),
        pytest.param(shrunk_as_asked, (), (B,), "resize", False, id="shrink as asked"),
        pytest.param(drained, (), (B,), "drain", False, id="drain"),
        pytest.param(drained_below_the_minimum, (), (), "held", True, id="hold"),
    ],
)
def test_a_change_is_wanted_under_its_cause(
    harness: Harness, begun: Callable[[Harness], None], join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], cause: str, *, hold: bool
) -> None:
    begun(harness)
    harness.quiet()
    [wanted] = [work for work in look(harness) if isinstance(work, e.ChangeWanted)]
    assert (wanted.join, wanted.leave, wanted.cause, wanted.hold) == (join, leave, cause, hold)
    assert r.Policy(reason=wanted.reason) in harness.events()
    assert harness.tracker._timing is not None
    assert (harness.tracker._timing.cause, harness.tracker._timing.before) == (cause, harness.group.ranks)


def test_a_resize_that_needs_nobody_began_when_it_was_asked_for(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 4, 1)
    harness.clock.advance(3.0)
    look(harness)
    assert harness.tracker.begun_at == 0.0


def test_a_resize_that_had_to_wait_for_newcomers_began_when_they_could_join(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 4, 3)
    harness.clock.advance(30.0)
    harness.warm(1)
    look(harness)
    assert harness.tracker.begun_at == 30.0


def test_a_group_that_is_held_is_not_held_again_and_goes_on_when_somebody_comes() -> None:
    harness = Harness(desired(2, 4, 2))
    harness.training(2)
    harness.lifecycle.drain(B, 5.0, "why")
    harness.controller.process(look(harness))
    proposal = harness.group.proposal
    assert proposal is not None
    for worker in (A, B):
        harness.hear(worker, m.Prepared(proposal.formation.generation, None))
    for worker in (A, B):
        harness.hear(worker, beat(2, 1, formed_at=1, outcome=Outcome.HELD))
    assert harness.group.held
    harness.quiet()
    assert [work for work in look(harness) if isinstance(work, e.ChangeWanted)] == []
    harness.warm(1)
    [wanted] = [work for work in look(harness) if isinstance(work, e.ChangeWanted)]
    assert (wanted.join, wanted.leave, wanted.cause) == ((C,), (B,), "drain")


@pytest.mark.parametrize(
    "work",
    [pytest.param(e.StopWanted(), id="stopping"), pytest.param(e.Failed("why", ExitCode.JOB_FAILED), id="ended")],
)
def test_a_run_that_comes_to_its_end_is_not_changed_any_more(harness: Harness, work: Work) -> None:
    harness.training(2)
    resize(harness, 1, 4, 4)
    harness.controller.process([work])
    assert look(harness) == []


def test_one_change_at_a_time(harness: Harness) -> None:
    harness.training(2)
    harness.controller.process([e.ChangeWanted(leave=(B,))])
    resize(harness, 1, 4, 4)
    harness.quiet()
    assert look(harness) == []
    assert harness.of_kind(r.Policy) == []


def test_after_a_change_that_nobody_asked_for_the_next_one_waits(harness: Harness) -> None:
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 4)
    harness.clock.advance(20.0)
    harness.change(harness.warm(1), cause="grow", step=1)
    harness.first_steps(2)
    harness.warm(1)
    harness.clock.advance(9.0)
    assert look(harness) == []
    harness.clock.advance(2.0)
    [wanted] = look(harness)
    assert isinstance(wanted, e.ChangeWanted)


def test_a_change_that_was_asked_for_puts_off_none(harness: Harness) -> None:
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 4)
    harness.clock.advance(20.0)
    harness.change(harness.warm(1), cause="resize", step=1)
    harness.first_steps(2)
    harness.warm(1)
    [wanted] = look(harness)
    assert isinstance(wanted, e.ChangeWanted)


# why the membership stays


def test_why_nothing_changes_is_recorded_once_for_each_topic(harness: Harness) -> None:
    harness.training(2)
    harness.leadership.desired = desired(1, 4, 3)
    harness.warm(1)
    harness.quiet()
    told = []
    for seconds in (1.0, 1.0, 10.0, 1.0):
        harness.clock.advance(seconds)
        harness.status.know_job(m.Job("cpu", 3, 640))  # so few steps are left that growing does not pay
        assert look(harness) == []
        told.append([policy.reason.partition(":")[0].partition(";")[0] for policy in harness.of_kind(r.Policy)])
    assert told == [["1 ready"], [], ["stay at 2 workers"], []]


def test_that_workers_still_start_is_no_news_and_that_their_capacity_is_missing_is(harness: Harness) -> None:
    harness.controller.begin([])
    harness.controller.process(look(harness))
    harness.quiet()
    harness.clock.advance(5.0)
    look(harness)
    assert harness.of_kind(r.Policy) == []
    harness.clock.advance(60.0)
    look(harness)
    [policy] = harness.of_kind(r.Policy)
    assert policy.reason.startswith("wait for capacity: 0 of at least 1 worker ready")


def test_a_group_as_it_is_wanted_is_no_news_and_ends_what_was_asked_for(harness: Harness) -> None:
    harness.training(2)
    resize(harness, 1, 3, 2)
    assert look(harness) == []
    assert harness.of_kind(r.Policy) == []
    harness.leadership.desired = desired(1, 4, 1)
    [wanted] = look(harness)
    assert isinstance(wanted, e.ChangeWanted)
    assert wanted.cause == "shrink"


# missing capacity


@pytest.mark.parametrize(
    ("gpu", "seconds", "count", "words"),
    [
        pytest.param(0, 60.0, 1, "", id="not for long yet"),
        pytest.param(0, 60.5, 1, "1 worker", id="1 worker"),
        pytest.param(0, 60.5, 2, "2 workers", id="2 workers"),
        pytest.param(1, 10.0, 1, "", id="with a GPU, not for long yet"),
        pytest.param(1, 10.5, 1, "1 worker with 1 GPU each", id="with a GPU"),
        pytest.param(2, 10.5, 2, "2 workers with 2 GPU each", id="2 workers with GPUs"),
    ],
)
def test_capacity_that_is_missing_is_named(gpu: int, seconds: float, count: int, words: str) -> None:
    harness = Harness(gpu=gpu)
    harness.controller.begin([])
    harness.controller.process([StartWorkers(count)])
    harness.clock.advance(seconds)
    look(harness)
    assert harness.status.waiting_for == words


def test_while_one_that_has_its_place_starts_nothing_is_missing(harness: Harness) -> None:
    harness.controller.begin([])
    harness.controller.process([StartWorkers(2)])
    harness.answer(described(A))
    harness.clock.advance(100.0)
    look(harness)
    assert harness.status.waiting_for == ""


def test_a_run_without_capacity_fails_at_its_deadline() -> None:
    harness = Harness(elastic__capacity_timeout_s=30.0, gpu=1)
    harness.controller.begin([])
    harness.controller.process(look(harness))
    for seconds, expected in ((15.0, 0), (15.0, 0), (0.5, 1)):
        harness.clock.advance(seconds)
        failed = [work for work in look(harness) if isinstance(work, e.Failed)]
        assert len(failed) == expected
    assert failed[0].exit_code is ExitCode.INFRASTRUCTURE
    assert failed[0].reason.endswith("waits for 2 workers with 1 GPU each")


def test_a_worker_that_builds_the_job_shows_that_there_is_capacity() -> None:
    harness = Harness(elastic__capacity_timeout_s=30.0, gpu=1)
    harness.controller.begin([])
    harness.controller.process(look(harness))
    harness.answer(described(A))
    harness.clock.advance(31.0)
    look(harness)
    assert [work for work in look(harness) if isinstance(work, e.Failed)] == []


# what is shown


def test_the_state_of_the_run_follows_the_group(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.drain(B, 20.0, "why")
    look(harness)
    harness.controller.tick()
    assert (harness.shown[-1].state, harness.shown[-1].draining) == (JobState.RUNNING, (B,))


def test_a_straggler_is_told_once_and_shown_as_long_as_it_is_slow(harness: Harness) -> None:
    harness.training(3)
    harness.leadership.desired = desired(1, 4, 3)
    harness.clock.advance(11.0)
    for worker, busy_s in ((A, 0.1), (B, 0.1), (C, 1.0)):
        harness.hear(worker, beat(applied=1, busy_s=busy_s, step_s=1.0))
    look(harness)
    look(harness)
    [told] = harness.of_kind(r.Straggler)
    assert (told.worker, told.ratio) == (C, 15.0)
    assert harness.status.stragglers == (C,)
    harness.hear(C, beat(applied=1, busy_s=0.1, step_s=1.0))
    look(harness)
    assert harness.status.stragglers == ()


# what a person changes


def test_what_a_person_wants_holds_from_then_on(harness: Harness) -> None:
    harness.training(2)
    for _ in range(3):
        harness.controller.process([StartWorkers(1)])
        harness.controller.process(harness.lifecycle.lose(harness.workers.started[-1][0][0], "it died", "lost"))
    assert harness.lifecycle.no_offers != ""
    harness.reconciler.desired_changed(desired(2, 6, 4, revision=2))
    assert harness.of_kind(r.ResizeWished) == [r.ResizeWished(by="me", workers="2..6", target=4)]
    assert (harness.group.minimum, harness.lifecycle.no_offers) == (2, "")
    assert harness.status.due(harness.now)
