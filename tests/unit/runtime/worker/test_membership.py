"""What the main thread is given to do, and what a worker says of its place."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.worker.membership import Entered, Finish, Membership
from launcher.runtime.worker.step_history import StepHistory

pytestmark = pytest.mark.unit
ONE, TWO = Generation(1), Generation(2)
LOAD = m.Load(Step(20), Term(1))


class FakeWorker:
    """Connection and groups in one, and the membership over them."""

    def __init__(self) -> None:
        self.said: list[m.ToController] = []
        self.done: list[tuple[str, object]] = []
        self.born = Term(1)
        self.waiting = False
        self.history = StepHistory(1, global_batch_size=8, checkpoint_every_steps=None)
        self.ended: list[str] = []
        fake: Any = self
        self.membership = Membership(threading.RLock(), fake, fake, self.history, self.ended.append)

    def say(self, message: m.ToController) -> None:
        self.said.append(message)

    def enter(self, generation: Generation) -> str:
        return f"collective {generation}"

    def cut(self) -> None:
        self.done.append(("cut", None))

    def connect(self, given: object) -> None:
        self.done.append(("connect", given))

    def discard(self, given: object) -> None:
        self.done.append(("discard", given))

    value = term_began = forget_save = discard

    def train(self, rank: int = 0) -> Entered:
        """Into generation 1, with a state."""
        self.membership.receive(m.Prepare(ONE, rank, 2, False))
        self.membership.connected(ONE, 0.25)
        self.membership.receive(m.Commit(ONE, Step(0), False, False, False, (0, 1), ()))
        entered = self.membership.next()
        assert isinstance(entered, Entered)
        self.membership.holds(Step(0), move_s=0.5, pause_s=None)
        self.said.clear()
        self.done.clear()
        return entered


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


def record(worker: FakeWorker, step: int) -> m.Row:
    row = worker.history.add(Step(step), ONE, loss=1.0, metrics={}, seconds=0.5, time="t", grad_norm=None)
    assert row is not None
    return row


def test_the_main_thread_enters_what_is_committed(worker: FakeWorker) -> None:
    entered = worker.train()
    assert (entered.committed.generation, str(entered.collective)) == (1, "collective 1")
    assert entered.holds_own, "a fresh start's donor has what it built"
    assert (worker.membership.generation, worker.membership.rank, worker.membership.applied) == (1, 0, 0)


def test_the_main_thread_waits_until_there_is_something_to_do(worker: FakeWorker) -> None:
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(worker.membership.next()), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    worker.membership.receive(LOAD)
    waiting.join(10)
    assert found == [LOAD]


def test_an_end_comes_before_a_checkpoint_and_that_before_a_generation(worker: FakeWorker) -> None:
    worker.membership.receive(m.Prepare(ONE, 0, 1, False))
    worker.membership.connected(ONE, 0.25)
    worker.membership.receive(m.Commit(ONE, Step(20), False, False, False, (0,), ()))
    worker.membership.receive(LOAD)
    assert worker.membership.next() == LOAD
    worker.membership.loaded(LOAD, m.Loaded(Step(20)))
    worker.membership.receive(m.Release())
    assert worker.membership.next() == Finish()


def test_a_newer_checkpoint_takes_the_place_of_one_that_was_not_begun(worker: FakeWorker) -> None:
    older = m.Load(Step(10), Term(1))
    for order in (LOAD, older):
        worker.membership.receive(order)
    assert worker.membership.next() == older


def test_flags_follow_the_orders(worker: FakeWorker) -> None:
    worker.train()
    assert (worker.membership.stop_wanted, worker.membership.switch_wanted) == (False, False)
    worker.membership.receive(m.Stop())
    worker.membership.receive(m.Prepare(TWO, 0, 1, False))
    worker.membership.connected(TWO, 0.25)
    worker.membership.receive(m.Commit(TWO, None, False, False, False, (), ()))
    assert worker.membership.stop_wanted
    assert worker.membership.switch_wanted
    worker.membership.applies(Step(1))
    worker.membership.switched()
    entered = worker.membership.next()
    assert isinstance(entered, Entered)
    assert entered.committed.generation == 2


def test_a_collective_that_broke_is_cut_told_and_left(worker: FakeWorker) -> None:
    worker.train()
    worker.membership.came_out("connection reset")
    assert worker.done == [("cut", None)]
    assert worker.said == [m.Broken("connection reset"), m.Left(ONE, Step(0))]


def test_an_error_lets_the_others_out_and_says_where_it_came(worker: FakeWorker) -> None:
    worker.train()
    worker.membership.applies(Step(3))
    worker.membership.failed("it failed", ExitCode.JOB_FAILED, recoverable=True)
    assert worker.done == [("cut", None)]
    assert worker.said == [m.Error("it failed", ExitCode.JOB_FAILED, Step(3), ONE, recoverable=True)]


@pytest.mark.parametrize("rank", [0, 1])
def test_records_are_said_by_one_rank(worker: FakeWorker, rank: int) -> None:
    worker.train(rank)
    row = record(worker, 1)
    worker.membership.say_record(row)
    assert worker.said == [row] * (rank == 0)


def test_records_that_are_not_durable_are_said_again(worker: FakeWorker) -> None:
    worker.train()
    record(worker, 1)
    second = record(worker, 2)
    evaluated = worker.history.evaluated(Step(2), {"loss": 1.0})
    worker.membership.receive(m.Durable(Step(1)))
    worker.membership.receive(m.SendRecords())
    assert worker.said == [second, evaluated]


def test_the_heartbeat_is_of_one_moment(worker: FakeWorker) -> None:
    facts: dict[str, Any] = {"ready": True, "phase": "training", "progress": 7, "busy_s": 0.5, "step_s": 1.0}
    beat = worker.membership.beat(**facts)
    assert (beat.generation, beat.applied, beat.formed_at, beat.outcome, beat.out) == (0, None, None, None, False)
    worker.train()
    worker.membership.applies(Step(3))
    worker.waiting = True
    assert worker.membership.beat(**facts) == m.Beat(ONE, Step(3), None, False, Step(0), True, "training", 7, True, 0.5, 1.0)
    worker.membership.ended(Outcome.FINISHED)
    assert worker.said == [m.Ended(ONE, Step(3), Outcome.FINISHED)]
    assert worker.membership.beat(**facts).outcome is Outcome.FINISHED


def test_what_a_worker_says_of_itself_has_its_first_term(worker: FakeWorker) -> None:
    worker.train()
    state = worker.membership.state(WorkerId("w0"), ready=True)
    assert (state.worker, state.ready, state.generation, state.rank, state.applied, state.inside, state.born) == (
        "w0",
        True,
        1,
        0,
        0,
        True,
        1,
    )


def test_who_is_evicted_ends(worker: FakeWorker) -> None:
    worker.membership.receive(m.Evicted())
    assert worker.ended == ["its controller evicted it"]
