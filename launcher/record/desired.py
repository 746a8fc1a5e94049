"""The desired state of a run: what people want of it, one revision after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.core.types import Term


@dataclass(frozen=True, kw_only=True)
class WorkerBounds:
    min: int
    max: int
    target: int


@dataclass(frozen=True, kw_only=True)
class Desired:
    """One revision of what people want of a run."""

    revision: int
    state: Literal["running", "stopped"]
    spec: int
    """Number of the spec in force."""
    workers: WorkerBounds
    by: str
    at: str
    resumes: Term | None = None
    """The ended term that this revision, and those after it, ask to go on from: until a higher term has a base, the run is pending again."""
