"""The process group of one generation: formed over a key-value store, left at any moment from another thread.

No group of torch's is registered globally, so one process can leave a generation and form the next.
How leaving works depends on the transport: see gloo.py and nccl.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.training.comm.transport import CollectiveBroken, KeyValueStore, Transport

if TYPE_CHECKING:  # torch takes seconds to import: it comes with the transport, when a group is formed
    from torch import Tensor
    from torch.distributed import Work as TorchWork


TAG = 0
"""The one tag of all messages: between two ranks, messages with the same tag keep their order."""


class Work:
    """A collective call under way."""

    def __init__(self, collective: Collective, work: TorchWork | None) -> None:
        """`work`: None in a world of one, where every call is done at once."""
        self._collective = collective
        self._work = work

    def wait(self) -> None:
        """Block until it is done. Raises CollectiveBroken."""
        self._collective._wait(self._work)


class Collective:
    """The process group of one generation, seen from one rank.

    Make it with `form`; or construct it, hand it to the thread that may leave, then `connect`.
    """

    def __init__(self, *, generation: int, rank: int, world_size: int, device: str, timeout_s: float) -> None:
        """`device`: "cpu" (Gloo) or "cuda" (NCCL); `timeout_s` bounds the forming of the group and each collective call."""
        self.generation = generation
        self.rank = rank
        self.world_size = world_size
        self.device = device
        """Where tensors have to be for a call: "cpu" or "cuda"."""
        self.waiting = False
        """Whether somebody waits for the other ranks at this moment; may be read from another thread."""
        self.waited_s = 0.0
        """Seconds spent in waiting for them."""
        self._timeout = timedelta(seconds=timeout_s)
        self._transport: Transport | None = None
        self._left = threading.Event()

    @classmethod
    def form(cls, store: KeyValueStore, *, generation: int, rank: int, world_size: int, device: str, timeout_s: float) -> Collective:
        """Construct and connect. Raises CollectiveBroken when a rank does not come within `timeout_s`."""
        collective = cls(generation=generation, rank=rank, world_size=world_size, device=device, timeout_s=timeout_s)
        collective.connect(store)
        return collective

    def connect(self, store: KeyValueStore) -> None:
        """Meet the other ranks; a world of one needs neither peers nor group.

        Raises CollectiveBroken when a rank does not come in time, or when the generation is left meanwhile.
        """
        if self.world_size == 1:
            return
        try:
            transport = self._transport = _transport_for(self.device)
            transport.connect(store, self.rank, self.world_size, self._timeout, self._left.is_set)
        except Exception as error:
            raise CollectiveBroken(f"generation {self.generation} could not be formed: {_first_line(error)}") from error
        if self._left.is_set():
            transport.cut()
            raise CollectiveBroken(f"generation {self.generation} was left while it was formed")

    def all_reduce(self, tensor: Tensor) -> Work:
        """Sum over the ranks, in place; the order of the sum is the transport's."""
        return self._call(lambda group: group.allreduce([tensor]))

    def broadcast(self, tensor: Tensor, source: int) -> Work:
        """Copy from the rank `source` into every other rank's tensor."""
        return self._call(lambda group: group.broadcast(tensor, source))

    def all_to_all(self, received: Tensor, sent: Tensor, received_rows: list[int], sent_rows: list[int]) -> Work:
        """Give the first `sent_rows[0]` rows of `sent` to rank 0, the next `sent_rows[1]` to rank 1, and so on.

        `received` takes `received_rows[0]` rows of rank 0, then those of rank 1, and so on. Both tensors: (sum of their rows, n).
        """
        return self._call(lambda group: group.alltoall_base(received, sent, received_rows, sent_rows))

    def all_gather(self, gathered: Tensor, own: Tensor) -> Work:
        """Every rank's `own`, (n,), one behind the other in `gathered`, (world_size x n,)."""
        return self._call(lambda group: group._allgather_base(gathered, own))

    def send(self, tensor: Tensor, destination: int) -> Work:
        """Give a contiguous tensor to one other rank, which calls `recv`; it may not change before the work is done.

        What one rank sends another arrives in that order.
        """
        return self._call(lambda group: group.send([tensor], destination, TAG))

    def recv(self, tensor: Tensor, source: int) -> Work:
        """Fill a contiguous tensor with what the rank `source` sends: as many bytes as it has."""
        return self._call(lambda group: group.recv([tensor], source, TAG))

    def leave(self) -> None:
        """Make every call that is blocked, or comes later, raise CollectiveBroken. From any thread, at any time, any number of times."""
        self._left.set()
        if self._transport is not None:
            self._transport.cut()

    def check(self) -> None:
        """Raises CollectiveBroken once the generation was left: a world of one makes no call that would."""
        if self._left.is_set():
            raise CollectiveBroken(f"generation {self.generation} was left")

    def close(self) -> None:
        """Give the connections back. Only where no other rank can still be inside one of the group's calls."""
        self._left.set()
        self._transport = None

    def _call(self, call: Callable[[Any], TorchWork]) -> Work:
        self.check()
        if self._transport is None:
            return Work(self, None)
        try:
            work = call(self._transport.group)
        except RuntimeError as error:
            raise CollectiveBroken(f"generation {self.generation}: {_first_line(error)}") from error
        return Work(self, work)

    def _wait(self, work: TorchWork | None) -> None:
        if work is not None and self._transport is not None:
            began = time.perf_counter()
            self.waiting = True
            try:
                self._transport.wait(work, self._left.is_set)
            except RuntimeError as error:
                raise CollectiveBroken(f"generation {self.generation}: {_first_line(error)}") from error
            finally:
                self.waiting = False
                self.waited_s += time.perf_counter() - began
        if work is not None:
            self.check()


def _transport_for(device: str) -> Transport:
    if device.startswith("cuda"):
        from launcher.training.comm.nccl import NcclTransport

        return NcclTransport()
    from launcher.training.comm.gloo import GlooTransport

    return GlooTransport()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
