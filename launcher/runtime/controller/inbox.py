"""What reaches the controller from other threads and processes, one type each, in one queue. Runs in the controller process."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from launcher.core.errors import LauncherError
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.desired import Desired
from launcher.runtime.cluster.node_drains import NodeDrain
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused
from launcher.runtime.transport.server import Disconnected, Received


@dataclass(frozen=True, slots=True)
class DeathExplained:
    """What Ray says of a worker's death; "" where it knows of none."""

    worker: WorkerId
    why: str


@dataclass(frozen=True, slots=True)
class LinePrinted:
    """`stream`: stdout or stderr."""

    worker: WorkerId
    stream: str
    line: str


@dataclass(frozen=True, slots=True)
class NodeDraining:
    drain: NodeDrain


@dataclass(frozen=True, slots=True)
class DesiredChanged:
    """The store has a newer revision of the desired state."""

    desired: Desired


@dataclass(frozen=True, slots=True)
class HigherTermSeen:
    """The store may have a higher term than the controller's own."""


@dataclass(frozen=True, slots=True)
class LedgerDurable:
    """The store has ledger and metrics of `term` through this step."""

    step: Step
    term: Term


@dataclass(frozen=True, slots=True)
class CheckpointDecided:
    """A checkpoint of `term` is committed, or abandoned for the reason in `failure`."""

    step: Step
    generation: Generation
    term: Term
    failure: str


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The record could not be written."""

    error: LauncherError


@dataclass(frozen=True, slots=True)
class PodBoundsRefused:
    """Kubernetes did not take the bounds of the group of worker pods."""

    why: str


Item = (
    Received
    | Disconnected
    | Attached
    | AttachRefused
    | AttachFailed
    | DeathExplained
    | LinePrinted
    | NodeDraining
    | DesiredChanged
    | HigherTermSeen
    | LedgerDurable
    | CheckpointDecided
    | StoreFailed
    | PodBoundsRefused
)


class Inbox:
    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """From any thread."""
        self._items.put(item)

    def get(self, timeout_s: float) -> Item | None:
        """The next one; None where none comes within `timeout_s` seconds (0: where none is there)."""
        try:
            return self._items.get(timeout=timeout_s) if timeout_s else self._items.get_nowait()
        except queue.Empty:
            return None
