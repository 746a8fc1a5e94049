"""What the controller knows of each living worker besides its place in the protocol: where it is, how fast, and how long it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.core.types import JsonObject, WorkerId
from launcher.runtime.policies.scaling import SpareView
from launcher.runtime.policies.stragglers import MemberView


@dataclass
class WorkerRecord:
    worker: WorkerId
    started_at: float
    facts: Any = field(default_factory=dict)
    """As it described itself; empty until it was placed and answered."""
    ready_since: float | None = None
    leave_by: float | None = None
    """It will be taken away by then."""
    touched: bool = False
    """It was called into a generation, so that what it built is no longer as it was built."""
    joined_at: float = 0.0
    busy_s: float | None = None
    step_s: float | None = None
    slow: bool = False

    @property
    def node(self) -> str:
        return str(self.facts.get("node_id") or self.facts.get("node") or "")


class WorkerRegistry:
    """All times are monotonic seconds."""

    def __init__(self) -> None:
        self.hands: dict[WorkerId, WorkerRecord] = {}

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self.hands

    def add(self, worker: WorkerId, now: float) -> WorkerRecord:
        hand = self.hands[worker] = WorkerRecord(worker, now)
        return hand

    def on_node(self, node_id: str) -> list[WorkerRecord]:
        return [hand for hand in self.hands.values() if hand.facts.get("node_id") == node_id]

    def step_s(self, members: Sequence[WorkerId]) -> float | None:
        """One step at the present size: the slowest member's."""
        known = [hand.step_s for worker in members if (hand := self.hands.get(worker)) is not None and hand.step_s is not None]
        return max(known, default=None)

    def members(self, ranks: Sequence[WorkerId], shards: Sequence[int]) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(
                worker=worker,
                node=hand.node,
                draining=hand.leave_by is not None,
                leave_by=hand.leave_by,
                busy_s=hand.busy_s,
                joined_at=hand.joined_at,
                shards=count,
            )
            for worker, count in zip(ranks, shards, strict=True)
            if (hand := self.hands.get(worker)) is not None
        )

    def ready(self, warm: Sequence[WorkerId]) -> tuple[SpareView, ...]:
        hands = (self.hands[worker] for worker in warm if worker in self.hands)
        return tuple(
            SpareView(worker=hand.worker, node=hand.node, draining=hand.leave_by is not None, ready_since=hand.ready_since or 0.0)
            for hand in hands
        )

    def describe(self, ranks: Sequence[WorkerId]) -> list[JsonObject]:
        """For events and the status: one object a member, in the order of their ranks."""
        facts = [self.hands[worker].facts if worker in self.hands else {} for worker in ranks]
        return [
            {"id": worker, "rank": rank, "node": each.get("node"), "pid": each.get("pid")}
            for rank, (worker, each) in enumerate(zip(ranks, facts, strict=True))
        ]
