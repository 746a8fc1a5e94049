"""What tests of the controller share: workers as they describe themselves."""

from __future__ import annotations

from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol.events import Outcome, WorkerState
from launcher.runtime.protocol.messages import Job, WorkerDescription

JOB = Job(device="cpu", total_steps=100, data_size=640)


def described(
    worker: WorkerId,
    *,
    ready: bool = False,
    generation: int = 0,
    rank: int = 0,
    world_size: int = 0,
    applied: int | None = None,
    inside: bool = False,
    outcome: Outcome | None = None,
    pending: int | None = None,
    knows_commit: bool = False,
    seen: int | None = None,
    born: int = 1,
    phase: str = "training",
    released: bool = False,
    spec: int = 1,
    pid: int = 7,
    node: str = "here",
    node_id: str = "",
    undecided: tuple[tuple[Step, Generation], ...] = (),
) -> WorkerDescription:
    """A worker's answer to the controller that calls it; it has seen no newer generation than it was in, unless that is said."""
    state = WorkerState(
        worker,
        ready,
        Generation(generation),
        rank,
        world_size,
        Step(applied) if applied is not None else None,
        inside,
        outcome,
        Generation(pending) if pending is not None else None,
        knows_commit,
        Generation(seen if seen is not None else generation),
        Term(born),
    )
    return WorkerDescription(
        state=state,
        phase=phase,
        released=released,
        spec=spec,
        pid=pid,
        node=node,
        node_id=node_id,
        job=JOB if ready else None,
        undecided=undecided,
        stdout="",
        stderr="",
    )
