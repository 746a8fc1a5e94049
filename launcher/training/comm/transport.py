"""What a process group is made of: the store over which its ranks meet, the transport that carries its calls, the error when it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # torch takes seconds to import, and a process without it may use these types
    from torch.distributed import Work as TorchWork


class KeyValueStore(Protocol):
    """Where the ranks of one generation find each other; given by the runtime."""

    def set(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout_s: float) -> bytes:
        """Blocks until the key is set. Raises TimeoutError."""
        ...


class CollectiveBroken(Exception):
    """A peer is gone, or this rank was told to leave: the step in flight is not applied."""


class Transport(ABC):
    """What a process group needs besides torch's own calls: gloo.py and nccl.py."""

    group: Any
    """torch's process group, or None before `connect`; the calls of a backend are missing in torch's stubs."""

    @abstractmethod
    def connect(self, store: KeyValueStore, rank: int, world_size: int, timeout: timedelta, left: Callable[[], bool]) -> None:
        """Form the group; return early where `left` says that it was left meanwhile.

        timeout: for the forming, and for each call of the group. Raises whatever torch or the store raises.
        """

    @abstractmethod
    def wait(self, work: TorchWork, left: Callable[[], bool]) -> None:
        """Block until the work is done. Raises RuntimeError, as torch does, when it cannot be."""

    @abstractmethod
    def cut(self) -> None:
        """Make every blocked call of the group fail; called from any thread, any number of times."""
