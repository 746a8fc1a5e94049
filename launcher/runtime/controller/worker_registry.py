"""What the controller knows of each living worker besides its place in the protocol: where it is, how fast, how long it stays. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.core.types import WorkerId
from launcher.record.members import Member
from launcher.runtime.policies.views import MemberView, SpareView
from launcher.runtime.protocol.messages import WorkerDescription


@dataclass
class WorkerRecord:
    """All times are monotonic seconds."""

    worker: WorkerId
    started_at: float
    description: WorkerDescription | None = None
    """As it described itself; None until it was placed and answered."""
    ready_since: float | None = None
    leave_by: float | None = None
    """It will be taken away by then."""
    used: bool = False
    """It was called into a generation, so that what it built is no longer as it was built."""
    joined_at: float = 0.0
    busy_s: float | None = None
    step_s: float | None = None
    slow: bool = False
    """It was told of as a straggler."""

    @property
    def placed(self) -> bool:
        return self.description is not None

    @property
    def node(self) -> str:
        """What tells its machine from others."""
        found = self.description
        return (found.node_id or found.node) if found is not None else ""

    @property
    def pid(self) -> int | None:
        return self.description.pid if self.description is not None else None

    @property
    def host(self) -> str | None:
        return self.description.node if self.description is not None else None


class WorkerRegistry:
    """All living workers of the run. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.records: dict[WorkerId, WorkerRecord] = {}

    def __contains__(self, worker: object) -> bool:
        return worker in self.records

    def __len__(self) -> int:
        return len(self.records)

    def add(self, worker: WorkerId, now: float) -> WorkerRecord:
        record = self.records[worker] = WorkerRecord(worker, now)
        return record

    def remove(self, worker: WorkerId) -> WorkerRecord | None:
        return self.records.pop(worker, None)

    def on_node(self, node_id: str) -> list[WorkerRecord]:
        return [each for each in self.records.values() if each.description is not None and each.description.node_id == node_id]

    def step_s(self, members: Sequence[WorkerId]) -> float | None:
        """One step at the present size: the slowest member's."""
        known = [each.step_s for worker in members if (each := self.records.get(worker)) is not None and each.step_s is not None]
        return max(known, default=None)

    def members(self, ranks: Sequence[WorkerId], shards: Sequence[int]) -> tuple[MemberView, ...]:
        """Of the present generation, for the policies; `shards` of each rank."""
        return tuple(
            MemberView(
                worker=worker,
                node=each.node,
                draining=each.leave_by is not None,
                leave_by=each.leave_by,
                busy_s=each.busy_s,
                joined_at=each.joined_at,
                shards=count,
            )
            for worker, count in zip(ranks, shards, strict=True)
            if (each := self.records.get(worker)) is not None
        )

    def ready(self, warm: Sequence[WorkerId]) -> tuple[SpareView, ...]:
        """Of those that may join, for the policies."""
        found = (self.records[worker] for worker in warm if worker in self.records)
        return tuple(
            SpareView(worker=each.worker, node=each.node, draining=each.leave_by is not None, ready_since=each.ready_since or 0.0)
            for each in found
        )

    def describe(self, ranks: Sequence[WorkerId]) -> tuple[Member, ...]:
        """For events and the status, in the order of their ranks."""
        found = [(worker, self.records.get(worker)) for worker in ranks]
        return tuple(
            Member(id=worker, rank=rank, node=each.host if each is not None else None, pid=each.pid if each is not None else None)
            for rank, (worker, each) in enumerate(found)
        )
