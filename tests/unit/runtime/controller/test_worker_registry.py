"""What is known of the living workers, as rules and documents want it."""

from __future__ import annotations

import pytest

from launcher.core.types import WorkerId
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.scaling import SpareView
from launcher.runtime.policies.stragglers import MemberView

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")


@pytest.fixture
def roster() -> WorkerRegistry:
    roster = WorkerRegistry()
    for number, worker in enumerate((A, B)):
        hand = roster.add(worker, 10.0)
        hand.facts = {"node": f"host{number}", "node_id": f"n{number}", "pid": 100 + number}
    return roster


def test_the_step_is_as_slow_as_the_slowest_member(roster: WorkerRegistry) -> None:
    assert roster.step_s((A, B)) is None
    roster.hands[A].step_s, roster.hands[B].step_s = 0.5, 0.75
    assert roster.step_s((A, B)) == 0.75
    assert roster.step_s((A, C)) == 0.5, "of one that is gone nothing is known"


def test_members_are_seen_with_their_shards_and_without_those_who_are_gone(roster: WorkerRegistry) -> None:
    roster.hands[B].leave_by, roster.hands[B].busy_s, roster.hands[B].joined_at = 99.0, 0.25, 20.0
    assert roster.members((C, B, A), (2, 3, 4)) == (
        MemberView(worker=B, node="n1", draining=True, leave_by=99.0, busy_s=0.25, joined_at=20.0, shards=3),
        MemberView(worker=A, node="n0", joined_at=0.0, shards=4),
    )


def test_spares_are_seen_with_how_long_they_have_been_ready(roster: WorkerRegistry) -> None:
    roster.hands[A].ready_since = 12.0
    roster.hands[B].leave_by = 0.0
    assert roster.ready((B, A, C)) == (
        SpareView(worker=B, node="n1", draining=True, ready_since=0.0),
        SpareView(worker=A, node="n0", ready_since=12.0),
    )


def test_workers_of_a_node_are_found_by_its_id(roster: WorkerRegistry) -> None:
    assert [hand.worker for hand in roster.on_node("n1")] == [B]
    assert roster.on_node("") == []


def test_a_worker_that_has_not_answered_is_on_no_node(roster: WorkerRegistry) -> None:
    assert roster.add(C, 11.0).node == ""
    assert C in roster
    roster.hands[C].facts = {"node": "host2"}
    assert roster.hands[C].node == "host2"


def test_members_are_described_in_the_order_of_their_ranks(roster: WorkerRegistry) -> None:
    assert roster.describe((B, C)) == [
        {"id": "w1", "rank": 0, "node": "host1", "pid": 101},
        {"id": "w2", "rank": 1, "node": None, "pid": None},
    ]
