"""Orders as messages: short, and each worker is told its own."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.protocol.messages import Order, messages

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
G = Generation(4)
FORMATION = m.Formation(G, (A, B))


def test_each_is_told_its_own_place_and_who_leaves_that_it_has_none() -> None:
    said = dict(messages(m.Prepare(FORMATION, (C,), (A, B, C))))
    assert {worker: message["rank"] for worker, message in said.items()} == {A: 0, B: 1, C: None}
    assert {message["world_size"] for message in said.values()} == {2}


def test_only_those_between_whom_the_state_moves_are_told_of_each_other() -> None:
    workers = tuple(WorkerId(f"w{index}") for index in range(5))
    commit = m.Commit(m.Formation(G, workers), (), (0, 2), (4,), Step(7), again=True, hold=False, save=False, to=workers)
    said = dict(messages(commit))
    dealing = {worker for worker, message in said.items() if message["receivers"]}
    assert dealing == {workers[0], workers[2], workers[4]}
    assert {message["step"] for message in said.values()} == {7}
    assert (said[workers[4]]["donors"], said[workers[1]]["donors"]) == ([0, 2], [])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (m.Withdraw(G, (A, B)), {"kind": "withdraw", "generation": 4}),
        (m.Leave(G, (A, B)), {"kind": "leave", "generation": 4}),
        (m.Stop((A, B)), {"kind": "stop"}),
        (m.Release((A, B)), {"kind": "release"}),
    ],
)
def test_what_is_the_same_for_all_is_one_message(order: Order, message: dict[str, object]) -> None:
    said = list(messages(order))
    assert [worker for worker, _ in said] == [A, B]
    assert said[0][1] == message
    assert said[0][1] is said[1][1]
