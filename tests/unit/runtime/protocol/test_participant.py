"""A worker's side of the generation protocol, call by call; tests/simulation plays whole runs of it."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol import participant as p
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.protocol.participant import Assignment, CommittedAssignment, Participant

pytestmark = pytest.mark.unit
G1, G2 = Generation(1), Generation(2)


def committed(
    generation: Generation, *, donors: tuple[int, ...] = (0,), receivers: tuple[int, ...] = (), step: Step | None = None
) -> CommittedAssignment:
    return CommittedAssignment(generation, donors, receivers, step, again=False, hold=False, save=False)


def inside(*, rank: int = 0, step: int = 0) -> Participant:
    """In generation 1, with its state."""
    worker = Participant()
    worker.prepare(Assignment(G1, rank, 2))
    worker.connected(G1)
    worker.commit(committed(G1, step=Step(0)))
    worker.enter()
    worker.holds(Step(step))
    return worker


def test_a_worker_connects_acknowledges_enters_and_forms() -> None:
    worker, assignment = Participant(), Assignment(G1, 0, 2)
    assert worker.prepare(assignment) == [p.Connect(assignment)]
    assert worker.prepare(assignment) == [], "it is connecting"
    assert worker.connected(G1) == [p.SayPrepared(G1)]
    assert worker.prepare(assignment) == [p.SayPrepared(G1)], "said again"
    assert not worker.may_enter
    assert worker.commit(committed(G1, step=Step(0))) == []
    assert worker.may_enter
    worker.enter()
    assert worker.applied == 0, "what the first donor built is the state of all"
    assert worker.holds(Step(0)) == [p.SayFormed(G1, Step(0))]
    assert worker.commit(committed(G1)) == [p.SayFormed(G1, Step(0))], "said again"


def test_a_switch_is_wanted_once_the_commit_is_known_and_ends_with_the_step() -> None:
    worker = inside()
    worker.prepare(Assignment(G2, 1, 2))
    worker.connected(G2)
    assert not worker.switch_wanted
    worker.commit(committed(G2))
    assert worker.switch_wanted
    assert not worker.may_enter, "its main thread is in generation 1"
    worker.applies(Step(1))
    assert worker.switched() == []
    assert worker.may_enter


def test_who_leaves_with_a_change_says_so_at_the_boundary_and_ends_when_it_is_released() -> None:
    worker = inside()
    assert worker.prepare(Assignment(G2, None, 1)) == [p.SayPrepared(G2)]
    assert worker.commit(committed(G2)) == []
    worker.applies(Step(3))
    assert worker.switched() == [p.SayLeft(G1, Step(3))]
    assert worker.release() == [p.Finish()]


def test_an_order_to_leave_cuts_the_collective_and_drops_what_was_prepared() -> None:
    worker = inside()
    worker.prepare(Assignment(G2, 0, 2))
    assert worker.leave(G2) == [p.Discard(G2), p.CutOff()]
    assert worker.came_out() == [p.SayLeft(G2, Step(0))]
    assert worker.leave(G2) == [p.SayLeft(G2, Step(0))], "said again"
    assert worker.out


def test_who_is_told_to_leave_and_connect_does_both_at_once() -> None:
    worker, assignment = inside(step=4), Assignment(G2, 0, 1)
    assert worker.prepare(assignment, leave=True) == [p.CutOff(), p.Connect(assignment)]
    assert worker.prepare(assignment, leave=True) == [], "it is on its way out, and connecting"
    assert worker.connected(G2) == [p.SayPrepared(G2)]
    assert worker.came_out() == [p.SayLeft(G1, Step(4))]
    assert worker.prepare(assignment, leave=True) == [p.SayLeft(G1, Step(4)), p.SayPrepared(G2)], "said again"
    worker.commit(committed(G2, step=Step(4)))
    assert worker.may_enter


def test_whose_collective_broke_by_itself_gives_up_the_change_that_was_under_way() -> None:
    worker = inside(step=4)
    worker.prepare(Assignment(G2, 0, 3))
    assert worker.came_out() == [p.Discard(G2), p.SayLeft(G1, Step(4))]


def test_an_order_to_leave_that_meets_the_end_of_the_step_is_answered() -> None:
    worker = inside()
    worker.leave(G1)
    assert worker.ended(Outcome.FINISHED) == [p.SayEnded(G1, Outcome.FINISHED), p.SayLeft(G1, Step(0))]
    assert worker.outcome is None


def test_what_is_older_than_what_was_seen_is_dropped() -> None:
    worker = inside()
    worker.prepare(Assignment(G2, 0, 2))
    assert worker.prepare(Assignment(G1, 1, 2)) == []
    assert worker.leave(G1) == []
    assert worker.withdraw(G1) == []
    assert worker.connected(G1) == [p.Discard(G1)]
    assert worker.could_not_connect(G1, "late") == []


def test_a_change_is_withdrawn_but_not_after_its_commit() -> None:
    worker = inside()
    worker.prepare(Assignment(G2, 0, 2))
    assert worker.withdraw(G2) == [p.Discard(G2)]
    worker = inside()
    worker.prepare(Assignment(G2, 0, 2))
    worker.connected(G2)
    worker.commit(committed(G2))
    assert worker.withdraw(G2) == []
    assert worker.switch_wanted


def test_who_cannot_connect_says_so_and_goes_on() -> None:
    worker = inside()
    worker.prepare(Assignment(G2, 0, 2))
    assert worker.could_not_connect(G2, "no route") == [p.SayRefused(G2, "no route")]
    assert worker.inside
    assert worker.commit(committed(G2)) == []


def test_a_state_that_arrived_in_part_is_none() -> None:
    worker = Participant()
    worker.prepare(Assignment(G1, 1, 2))
    worker.connected(G1)
    worker.commit(committed(G1, receivers=(1,), step=Step(5)))
    worker.enter()
    assert worker.came_out() == [p.SayLeft(G1, None)]


def test_what_a_new_controller_is_told() -> None:
    worker = inside(rank=1, step=4)
    worker.prepare(Assignment(G2, 0, 2))
    worker.connected(G2)
    worker.commit(committed(G2))
    found = worker.state(WorkerId("w0"), ready=True, born=Term(1))
    assert (found.generation, found.rank, found.world_size, found.applied) == (G1, 1, 2, 4)
    assert (found.inside, found.pending, found.knows_commit, found.seen) == (True, G2, True, G2)
