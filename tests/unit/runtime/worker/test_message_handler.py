"""Messages become what a worker does and says: each of them has its effect, and an order that comes twice is answered twice and done once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from launcher.core.types import Generation, Step, Term
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol import participant as p
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.worker.message_handler import MessageHandler

pytestmark = pytest.mark.unit
ONE, TWO = Generation(1), Generation(2)
LOAD = m.Load(Step(20), Term(1))


@dataclass
class Recorded:
    """Effects, as they are asked for: the name, and what was given."""

    done: list[tuple[object, ...]] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return lambda *given: self.done.append((name, *given))

    def new(self) -> list[tuple[object, ...]]:
        done, self.done = self.done, []
        return done


@pytest.fixture
def effects() -> Recorded:
    return Recorded()


@pytest.fixture
def me() -> p.Participant:
    return p.Participant()


@pytest.fixture
def handler(me: p.Participant, effects: Recorded) -> MessageHandler:
    return MessageHandler(me, effects)  # type: ignore[arg-type]


def prepare(generation: Generation, rank: int | None = 0, *, leave: bool = False) -> m.Prepare:
    return m.Prepare(generation, rank, 2, leave)


def commit(generation: Generation) -> m.Commit:
    return m.Commit(generation, Step(0), False, False, False, (0,), (1,))


def train(handler: MessageHandler, effects: Recorded) -> None:
    """Into generation 1."""
    handler.receive(prepare(ONE))
    handler.connected(ONE, 0.25)
    handler.receive(commit(ONE))
    handler.enter()
    handler.holds(Step(0), move_s=0.5, pause_s=None)
    effects.new()


@pytest.mark.parametrize(
    ("message", "effect"),
    [
        (m.Stop(), ("stop",)),
        (LOAD, ("load", LOAD)),
        (m.SendRecords(), ("send_records",)),
        (m.Durable(Step(7)), ("forget_records", 7)),
        (m.CheckpointDecided(Step(7), TWO), ("forget_save", 7, 2)),
        (m.TermBegan(Term(3)), ("term_began", 3)),
        (m.Value(ONE, "k", "eA=="), ("value", m.Value(ONE, "k", "eA=="))),
        (m.Evicted(), ("evicted",)),
        (m.Release(), ("finish",)),
        (m.Leave(ONE), ("say", m.Left(ONE, None))),
        (prepare(ONE, None), ("say", m.Prepared(ONE, None))),
        (prepare(ONE, 1), ("connect", p.Assignment(ONE, 1, 2))),
    ],
    ids=lambda each: type(each).__name__,
)
def test_each_message_has_its_effect(handler: MessageHandler, effects: Recorded, message: m.ToWorker, effect: tuple[object, ...]) -> None:
    handler.receive(message)
    assert effects.new() == [effect]


@pytest.mark.parametrize("message", [m.Kept(), commit(ONE), m.Withdraw(ONE)], ids=lambda each: type(each).__name__)
def test_what_says_nothing_new_has_none(handler: MessageHandler, effects: Recorded, message: m.ToWorker) -> None:
    handler.receive(message)
    assert effects.new() == []


def test_a_generation_from_its_order_to_its_end(handler: MessageHandler, effects: Recorded, me: p.Participant) -> None:
    handler.receive(prepare(ONE))
    handler.connected(ONE, 0.25)
    handler.receive(commit(ONE))
    assert effects.new() == [("connect", p.Assignment(ONE, 0, 2)), ("say", m.Prepared(ONE, 0.25))]
    assert handler.enter() == p.CommittedAssignment(ONE, (0,), (1,), Step(0), again=False, hold=False, save=False)
    handler.holds(Step(0), move_s=0.5, pause_s=1.5)
    me.applies(Step(1))
    handler.carry_out(me.ended(Outcome.FINISHED))
    assert effects.new() == [("say", m.Formed(ONE, Step(0), 0.25, 0.5, 1.5)), ("say", m.Ended(ONE, Step(1), Outcome.FINISHED))]


def test_whoever_repeats_a_commit_hears_the_same_of_it(handler: MessageHandler, effects: Recorded) -> None:
    train(handler, effects)
    handler.receive(prepare(TWO))
    handler.connected(TWO, 9.0)
    effects.new()
    handler.receive(commit(ONE))
    assert effects.new() == [("say", m.Formed(ONE, Step(0), 0.25, 0.5, None))], "with the times of its own group, not of the next one"


def test_whoever_repeats_a_preparation_hears_how_long_it_took(handler: MessageHandler, effects: Recorded) -> None:
    for _ in range(2):
        handler.receive(prepare(ONE))
    handler.connected(ONE, 0.25)
    handler.receive(prepare(ONE))
    assert effects.new() == [("connect", p.Assignment(ONE, 0, 2)), *[("say", m.Prepared(ONE, 0.25))] * 2]


def test_a_group_that_nobody_wants_any_more_is_discarded(handler: MessageHandler, effects: Recorded) -> None:
    handler.receive(prepare(ONE))
    handler.receive(m.Withdraw(ONE))
    handler.connected(ONE, 0.25)
    assert effects.new()[1:] == [("discard", ONE)] * 2, "when it is withdrawn, and when it was formed nevertheless"


def test_a_group_that_cannot_be_formed_is_refused(handler: MessageHandler, effects: Recorded) -> None:
    handler.receive(prepare(ONE))
    handler.could_not_connect(ONE, "no route")
    assert effects.new()[1:] == [("say", m.Refused(ONE, "no route"))]


def test_a_worker_inside_is_cut_off_before_it_says_that_it_left(handler: MessageHandler, effects: Recorded, me: p.Participant) -> None:
    train(handler, effects)
    handler.receive(prepare(TWO, leave=True))
    assert effects.new() == [("cut",), ("connect", p.Assignment(TWO, 0, 2))]
    handler.carry_out(me.came_out())
    assert effects.new() == [("say", m.Left(ONE, Step(0)))]


def test_a_checkpoint_is_loaded_once_and_its_result_said_as_often_as_it_is_asked_for(
    handler: MessageHandler, effects: Recorded, me: p.Participant
) -> None:
    handler.receive(LOAD)
    handler.receive(LOAD)
    assert effects.new() == [("load", LOAD)], "it is not begun again while it is under way"
    handler.loaded(LOAD, m.Loaded(Step(20)))
    handler.receive(LOAD)
    assert effects.new() == [("say", m.Loaded(Step(20)))] * 2
    assert me.applied == 20


def test_an_older_checkpoint_is_loaded_when_the_newest_is_corrupt(handler: MessageHandler, effects: Recorded, me: p.Participant) -> None:
    older = m.Load(Step(10), Term(1))
    handler.receive(LOAD)
    handler.loaded(LOAD, m.Corrupt(Step(20), "a chunk is missing"))
    handler.receive(older)
    assert effects.new() == [("load", LOAD), ("say", m.Corrupt(Step(20), "a chunk is missing")), ("load", older)]
    assert me.applied is None
    handler.receive(older)
    assert effects.new() == [], "the result of the other order is no answer to this one"


def test_a_result_that_comes_after_another_order_is_no_answer_to_that_one(handler: MessageHandler, effects: Recorded) -> None:
    older = m.Load(Step(10), Term(1))
    handler.receive(LOAD)
    handler.receive(older)
    handler.loaded(LOAD, m.Loaded(Step(20)))
    effects.new()
    handler.receive(older)
    assert effects.new() == []
