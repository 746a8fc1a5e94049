"""The change under way, from its first notice to its last step, and what changes and starts have cost."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, WorkerId
from launcher.record import events as r
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.policies.views import MeasuredCosts
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from tests.unit.runtime.controller.harness import G1, G2, G3, A, B, C, Harness

pytestmark = pytest.mark.unit


@pytest.fixture
def tracker(harness: Harness) -> ResizeTracker:
    """Of a run in which nothing has changed yet."""
    return ResizeTracker(harness.recorder, harness.status, harness.clock)


def changed(
    after: tuple[WorkerId, ...], *, before: tuple[WorkerId, ...] = (A, B), generation: Generation = G2, hold: bool = False
) -> e.Changed:
    return e.Changed(e.Formation(generation, after), before, "grow", "as asked", Step(40), hold)


def formed(pause_s: float | None, generation: Generation = G2) -> m.Formed:
    return m.Formed(generation, Step(40), connect_s=0.25, move_s=0.5, pause_s=pause_s)


def grow(tracker: ResizeTracker, harness: Harness) -> None:
    """C joins A and B: asked for at once, committed a second later, formed after another."""
    tracker.wanted("grow", "as asked", harness.now, (A, B), joins=True)
    harness.clock.advance(1.0)
    tracker.committed(G2)
    for worker, pause_s in ((A, 0.5), (B, 2.0), (C, None)):
        tracker.formed_by(worker, formed(pause_s))
    harness.clock.advance(1.0)
    tracker.changed(changed((A, B, C)))


def test_a_change_is_told_when_its_last_member_has_done_a_step(harness: Harness, tracker: ResizeTracker) -> None:
    grow(tracker, harness)
    for worker in (A, B, C):
        assert harness.of_kind(r.Resized) == []
        harness.clock.advance(1.0)
        tracker.stepped(worker, G2)
    [resized] = harness.of_kind(r.Resized)
    assert (resized.cause, resized.from_size, resized.to_size, resized.joined) == ("grow", 2, 3, (C,))
    assert (resized.agree_s, resized.first_step_s, resized.total_s, resized.pause_s) == (0.75, 3.0, 5.0, 2.0)
    assert tracker.begun_at is None
    harness.controller.begin([])
    harness.controller.tick()
    shown = harness.shown[-1].last_change
    assert shown is not None
    assert (shown.generation, shown.step, shown.pause_s) == (2, 40, 2.0)


def test_what_workers_say_of_another_generation_does_not_count(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.wanted("grow", "as asked", harness.now, (A, B), joins=True)
    tracker.formed_by(A, formed(7.0))
    tracker.committed(G2)
    tracker.formed_by(A, formed(9.0, G3))
    tracker.changed(changed((A, B, C)))
    for worker in (A, B, C):
        tracker.stepped(worker, G1)
    assert harness.of_kind(r.Resized) == []
    for worker in (A, B, C):
        tracker.stepped(worker, G2)
    assert [resized.pause_s for resized in harness.of_kind(r.Resized)] == [None]


def test_what_nothing_is_under_way_for_means_nothing(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.committed(G2)
    tracker.formed_by(A, formed(2.0))
    tracker.stepped(A, G2)
    tracker.lost_meanwhile("lost", "it died")
    tracker.tell()
    assert (tracker.begun_at, tracker.costs, harness.events()) == (None, MeasuredCosts(), [])


def test_a_change_that_came_to_nothing_is_not_told(harness: Harness, tracker: ResizeTracker) -> None:
    grow(tracker, harness)
    tracker.dropped()
    for worker in (A, B, C):
        tracker.stepped(worker, G2)
    assert harness.events() == []


def test_the_start_is_no_change_of_the_group(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.changed(changed((A,), before=(), generation=G1))
    tracker.stepped(A, G1)
    assert (harness.events(), tracker.begun_at) == ([], None)


def test_a_change_that_nobody_announced_is_told_from_its_forming_on(harness: Harness, tracker: ResizeTracker) -> None:
    """As a new controller finds it."""
    harness.clock.advance(5.0)
    tracker.changed(changed((A,), before=(A, B)))
    assert tracker.begun_at == 5.0
    tracker.stepped(A, G2)
    assert [resized.cause for resized in harness.of_kind(r.Resized)] == ["grow"]


def test_a_group_that_holds_is_told_as_soon_as_it_is_formed(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.lost("lost", "it died", (A, B), 0.5)
    tracker.committed(G2)
    tracker.changed(changed((A,), hold=True))
    [resized] = harness.of_kind(r.Resized)
    assert (resized.cause, resized.detect_s, resized.left) == ("lost", 0.5, (B,))


def test_the_end_tells_what_is_known_of_a_change_whose_steps_are_not_done(harness: Harness, tracker: ResizeTracker) -> None:
    grow(tracker, harness)
    tracker.tell()
    [resized] = harness.of_kind(r.Resized)
    assert (resized.first_step_s, resized.pause_s) == (None, 2.0)


@pytest.mark.parametrize(
    ("cause", "becomes"),
    [("grow", "lost"), ("drain", "lost"), ("lost", "lost"), ("evicted", "evicted"), ("error", "error")],
)
def test_a_group_that_is_told_to_leave_has_lost_somebody(harness: Harness, tracker: ResizeTracker, cause: str, becomes: str) -> None:
    """The notice of the loss itself may come before that, or after it."""
    tracker.wanted(cause, "why", harness.now, (A, B), joins=False)
    harness.clock.advance(1.0)
    tracker.broke_off((A, B))
    tracker.changed(changed((A,), hold=True))
    [resized] = harness.of_kind(r.Resized)
    assert (resized.cause, resized.reason) == (becomes, "why" if cause == becomes else "workers lost each other")


def test_a_group_that_is_told_to_leave_while_nothing_is_under_way_has_lost_somebody(harness: Harness, tracker: ResizeTracker) -> None:
    harness.clock.advance(1.0)
    tracker.broke_off((A, B))
    assert tracker.begun_at == 1.0


@pytest.mark.parametrize(
    ("after", "costs"),
    [((A, B, C), MeasuredCosts(grow_s=2.0)), ((B,), MeasuredCosts(shrink_s=2.0)), ((B, C), MeasuredCosts(shrink_s=2.0))],
    ids=["grows", "shrinks", "as large as before"],
)
def test_what_a_change_cost_is_known_for_the_next_one(
    harness: Harness, tracker: ResizeTracker, after: tuple[WorkerId, ...], costs: MeasuredCosts
) -> None:
    tracker.wanted("resize", "as asked", harness.now, (A, B), joins=False)
    tracker.committed(G2)
    tracker.formed_by(B, formed(2.0))
    tracker.changed(changed(after))
    for worker in after:
        tracker.stepped(worker, G2)
    assert tracker.costs == costs


# newcomers that warm up beside a generation at work


def test_newcomers_slow_the_others_down_and_the_change_with_which_they_join_says_so(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.newcomers_asked_for(Step(10), 0.5)
    harness.clock.advance(4.0)
    tracker.newcomers_asked_for(Step(14), 9.0)
    tracker.newcomer_ready(Step(14))
    assert tracker.costs == MeasuredCosts(warm_up_s=2.0), "4 steps in 4 s, where 8 had been done"
    for joins, slowdown in ((False, None), (True, 0.5), (True, None)):
        tracker.wanted("grow", "", harness.now, (A, B), joins=joins)
        tracker.committed(G2)
        tracker.changed(changed((A, B), hold=True))
        assert [resized.slowdown for resized in harness.of_kind(r.Resized)] == [slowdown]


@pytest.mark.parametrize(
    ("step_s", "seconds", "done"),
    [
        pytest.param(0.5, 4.0, 2, id="too few steps were done"),
        pytest.param(0.5, 0.0, 8, id="no time has passed"),
        pytest.param(None, 4.0, 4, id="no step was measured"),
    ],
)
def test_of_newcomers_nothing_is_concluded_too_early(
    harness: Harness, tracker: ResizeTracker, step_s: float | None, seconds: float, done: int
) -> None:
    tracker.newcomers_asked_for(Step(10), step_s)
    harness.clock.advance(seconds)
    tracker.newcomer_ready(Step(10 + done))
    assert tracker.costs == MeasuredCosts()


def test_a_group_that_is_faster_than_before_was_not_slowed_down(harness: Harness, tracker: ResizeTracker) -> None:
    tracker.newcomers_asked_for(Step(10), 2.0)
    harness.clock.advance(4.0)
    tracker.newcomer_ready(Step(14))
    assert tracker.costs == MeasuredCosts(warm_up_s=0.0)


def test_what_a_save_costs_is_the_last_one(tracker: ResizeTracker) -> None:
    tracker.saved(3.0)
    tracker.saved(2.0)
    assert tracker.costs == MeasuredCosts(save_s=2.0)
