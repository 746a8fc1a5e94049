"""What the controller does with worker processes, as data: decided in reconciler, lifecycle and takeover, done in executor.py. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.core.types import WorkerId
from launcher.runtime.protocol import events as e


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Ask for so many more, and attach each as soon as it is placed."""

    count: int


@dataclass(frozen=True, slots=True)
class AttachWorkers:
    """Tell living workers to report to this controller."""

    workers: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class AnnounceTerm:
    """Tell workers that the controller goes on under another term."""

    workers: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class EndWorkers:
    """Close their connections and end their processes."""

    workers: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class ExplainDeath:
    """Ask Ray for the cause of a worker's death."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class AskForRecords:
    """Have rank 0 say again every row and evaluation that is not known to be durable."""


@dataclass(frozen=True, slots=True)
class NoteFirstStep:
    """A worker did its first step in a generation; record it where it is the first one of the run that is committed."""

    time: str
    """When the worker did it, in ISO 8601."""


Effect = StartWorkers | AttachWorkers | AnnounceTerm | EndWorkers | ExplainDeath | AskForRecords | NoteFirstStep
Work = e.Event | e.Action | Effect
"""What waits in the controller's queue: events for the coordinator, actions and effects for the executor."""
