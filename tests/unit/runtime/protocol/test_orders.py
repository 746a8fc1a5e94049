"""Orders as messages: short, and each worker is told its own."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import events as m
from launcher.runtime.protocol import messages
from launcher.runtime.protocol.orders import Order, messages_of

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
G = Generation(4)
FORMATION = m.Formation(G, (A, B))


def test_each_is_told_its_own_place_and_who_leaves_that_it_has_none() -> None:
    said = dict(messages_of(m.Prepare(FORMATION, (C,), (A, B, C))))
    assert {worker: message.rank for worker, message in said.items()} == {A: 0, B: 1, C: None}
    assert {message.world_size for message in said.values()} == {2}


def test_only_those_between_whom_the_state_moves_are_told_of_each_other() -> None:
    workers = tuple(WorkerId(f"w{index}") for index in range(5))
    commit = m.Commit(m.Formation(G, workers), (), (0, 2), (4,), Step(7), again=True, hold=False, save=False, to=workers)
    said = dict(messages_of(commit))
    dealing = {worker for worker, message in said.items() if message.receivers}
    assert dealing == {workers[0], workers[2], workers[4]}
    assert {message.step for message in said.values()} == {7}
    assert (said[workers[4]].donors, said[workers[1]].donors) == ((0, 2), ())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (m.Withdraw(G, (A, B)), messages.Withdraw(G)),
        (m.Leave(G, (A, B)), messages.Leave(G)),
        (m.Stop((A, B)), messages.Stop()),
        (m.Release((A, B)), messages.Release()),
    ],
)
def test_what_is_the_same_for_all_is_one_message(order: Order, message: messages.Message) -> None:
    said = list(messages_of(order))
    assert [worker for worker, _ in said] == [A, B]
    assert said[0][1] == message
    assert said[0][1] is said[1][1]
