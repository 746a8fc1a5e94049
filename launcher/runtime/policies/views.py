"""What policies look at: the worker group at one moment, as frozen data. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.core.types import WorkerId
from launcher.record.desired import WorkerBounds


@dataclass(frozen=True, kw_only=True)
class MemberView:
    """A worker of the present generation."""

    worker: WorkerId
    node: str
    draining: bool = False
    leave_by: float | None = None
    """Of a draining worker, on the controller's monotonic clock; None: unknown, taken for now."""
    busy_s: float | None = None
    """Own computing of one step in this generation, smoothed, without waiting for others; None: not measured yet."""
    joined_at: float
    shards: int
    """That it computes in one step."""


@dataclass(frozen=True, kw_only=True)
class SpareView:
    """A warm worker that is no member yet."""

    worker: WorkerId
    node: str
    draining: bool = False
    ready_since: float


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """Seconds, of the last of each kind; None: not measured yet."""

    grow_s: float | None = None
    shrink_s: float | None = None
    warm_up_s: float | None = None
    """What the members lost while newcomers warmed up beside them."""
    save_s: float | None = None
    """To save a worker's part of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """All times are seconds of one monotonic clock."""

    now: float
    bounds: WorkerBounds
    asked: bool = False
    """A person changed the bounds, and that is not carried out yet."""
    members: tuple[MemberView, ...] = ()
    """In the order of their ranks."""
    ready: tuple[SpareView, ...] = ()
    warming: tuple[WorkerId, ...] = ()
    """Placed, not ready yet; oldest first."""
    pending: tuple[WorkerId, ...] = ()
    """Not placed yet: the standing offer; oldest first."""
    step_s: float | None = None
    """One step at the present size, smoothed."""
    steps_left: int | None = None
    costs: MeasuredCosts = field(default_factory=MeasuredCosts)
    last_change_at: float | None = None
    """When the last change that nobody asked for was made, losses and drains included."""
    shards: int
    """V: what the batch of one step is cut into."""
    changing: bool = False
    settling: bool = False
    """A change is formed, and its first step is not done: what starts now would take processors from it."""
    held: bool = False
    """The group is below workers.min, holds its state and waits."""
    no_offers: str = ""
    """Why no more workers are to be offered; "": they are."""
