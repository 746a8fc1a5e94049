"""What is known of the living workers, as rules and documents want it."""

from __future__ import annotations

import pytest

from launcher.core.types import WorkerId
from launcher.record.members import Member
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.views import MemberView, SpareView
from tests.unit.runtime.controller.harness import described

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")


@pytest.fixture
def registry() -> WorkerRegistry:
    registry = WorkerRegistry()
    for number, worker in enumerate((A, B)):
        record = registry.add(worker, 10.0)
        record.description = described(worker, node=f"host{number}", node_id=f"n{number}", pid=100 + number)
    return registry


def test_the_step_is_as_slow_as_the_slowest_member(registry: WorkerRegistry) -> None:
    assert registry.step_s((A, B)) is None
    registry.records[A].step_s, registry.records[B].step_s = 0.5, 0.75
    assert registry.step_s((A, B)) == 0.75
    assert registry.step_s((A, C)) == 0.5, "of one that is gone nothing is known"


def test_members_are_seen_with_their_shards_and_without_those_who_are_gone(registry: WorkerRegistry) -> None:
    registry.records[B].leave_by, registry.records[B].busy_s, registry.records[B].joined_at = 99.0, 0.25, 20.0
    assert registry.members((C, B, A), (2, 3, 4)) == (
        MemberView(worker=B, node="n1", draining=True, leave_by=99.0, busy_s=0.25, joined_at=20.0, shards=3),
        MemberView(worker=A, node="n0", joined_at=0.0, shards=4),
    )


def test_spares_are_seen_with_how_long_they_have_been_ready(registry: WorkerRegistry) -> None:
    registry.records[A].ready_since = 12.0
    registry.records[B].leave_by = 0.0
    assert registry.ready((B, A, C)) == (
        SpareView(worker=B, node="n1", draining=True, ready_since=0.0),
        SpareView(worker=A, node="n0", ready_since=12.0),
    )


def test_workers_of_a_node_are_found_by_its_id(registry: WorkerRegistry) -> None:
    assert [record.worker for record in registry.on_node("n1")] == [B]
    assert registry.on_node("") == []


def test_a_worker_that_has_not_answered_is_on_no_node(registry: WorkerRegistry) -> None:
    assert registry.add(C, 11.0).node == ""
    assert C in registry
    registry.records[C].description = described(C, node="host2")
    assert registry.records[C].node == "host2"


def test_members_are_described_in_the_order_of_their_ranks(registry: WorkerRegistry) -> None:
    assert registry.describe((B, C)) == (
        Member(id=B, rank=0, node="host1", pid=101),
        Member(id=C, rank=1, node=None, pid=None),
    )


def test_a_worker_that_was_removed_is_known_no_more(registry: WorkerRegistry) -> None:
    record = registry.remove(B)
    assert record is not None
    assert record.worker == B
    assert (B in registry, len(registry), registry.remove(B)) == (False, 1, None)
