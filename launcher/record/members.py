"""The group of workers as the record shows it: its members, and what a change of the group came to."""

from __future__ import annotations

from msgspec import Struct

from launcher.core.types import Generation, Step, WorkerId


class Member(Struct, frozen=True, kw_only=True):
    """A worker of a generation."""

    id: WorkerId
    node: str | None
    """Host name; null when the worker has not described itself."""
    pid: int | None
    rank: int


class ResizeFacts(Struct, frozen=True, kw_only=True):
    """What a change of the group came to. Durations are in seconds; null: not known, or there was none."""

    cause: str
    reason: str = ""
    from_size: int
    to_size: int
    detect_s: float | None = None
    """From the last sign of life of the worker that was lost to the notice of its loss."""
    agree_s: float | None = None
    form_s: float | None = None
    move_s: float | None = None
    first_step_s: float | None = None
    total_s: float | None = None
    pause_s: float | None = None
    """As the training loop of the worst survivor felt it."""
    slowdown: float | None = None
    """The survivors' steps/s while newcomers warmed up over those before."""
    joined: tuple[WorkerId, ...] = ()
    left: tuple[WorkerId, ...] = ()


class LastChange(ResizeFacts, frozen=True, kw_only=True):
    """The newest change of a run's group."""

    generation: Generation
    """The one that it led to."""
    step: Step
    at: str
    """When it was complete, in ISO 8601."""
