"""A process that reads samples for a worker. It builds a data set of its own, so that it shares no file position, connection or lock.

`prepare` is called once when the process begins, then `build` and `read`, one call at a time. What is no longer wanted the worker marks in
memory that they share, because a process that is in the middle of a call reads no messages.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launcher.core.errors import ForeignTraceback, LauncherError
from launcher.training.data.batches import Batch, with_each
from launcher.training.data.samples import Samples

Group: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64] | None]
"""The samples of one batch, as `Samples.read` takes them: indices (n,), and passes over the data (n,) or None."""
BuildSplits: TypeAlias = Callable[[], Mapping[str, Samples]]
"""Gives the splits by their names; it can be pickled."""
ALIGNMENT = 64
"""Bytes; enough for every type of number, and a line of the processor's cache."""
SLOTS = 4096
"""Marks of abandoned requests; far more than there are requests under way."""
_PACKAGE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the memory of its message."""

    start: int
    """In bytes."""
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Message:
    """Batches in one piece of shared memory, so that they cost one open file however many tensors they have."""

    memory: Tensor
    """(bytes,)"""
    places: list[object]
    """The batches, with a `_Place` for each tensor."""

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Message:
        places, tensors, starts = [], [], []
        end = 0

        def placed(tensor: Tensor) -> _Place:
            nonlocal end
            start = end
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
            tensors.append(tensor.detach())
            starts.append(start)
            return _Place(start, tensor.shape, tensor.dtype)

        places = [with_each(batch, placed) for batch in batches]
        # As torch's own loader makes its batches; share_memory_() would first copy what nobody has written yet.
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(end, 1)))  # type: ignore[no-untyped-call]
        for start, tensor in zip(starts, tensors, strict=True):
            _view(memory, _Place(start, tensor.shape, tensor.dtype)).copy_(tensor)
        return cls(memory, places)

    def batches(self) -> list[Batch]:
        """As they were, without a copy."""
        return [with_each(batch, lambda place: _view(self.memory, place)) for batch in self.places]


@dataclass(frozen=True)
class Failure:
    """What was raised while reading."""

    error: bytes | None
    """Pickled; None for one that cannot be."""
    summary: str
    """Type and message."""
    trace: str
    """The traceback, from where it leaves our code."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        entry = error.__traceback__
        while entry is not None and entry.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            entry = entry.tb_next
        trace = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:  # noqa: BLE001 - an exception of the user's may do anything then
            pickled = None
        return cls(pickled, traceback.format_exception_only(type(error), error)[-1].strip(), trace)

    def reraise(self) -> None:
        """Raises the error with its traceback as cause; a RuntimeError of the same text for one that cannot be pickled."""
        error: BaseException = RuntimeError(self.summary) if self.error is None else pickle.loads(self.error)
        if isinstance(error, LauncherError):
            raise error
        raise error from ForeignTraceback(self.trace)


class _Abandoned(Exception):
    """What is being read is no longer wanted."""


def prepare(build_splits: BuildSplits, abandoned: Tensor) -> None:
    """Be a reading process for splits that are built so: end with the worker, and leave the processor's other cores alone.

    `abandoned`: (SLOTS,) int64 in shared memory; at number % SLOTS stands the number of a request that is no longer wanted.
    """
    global _build_splits, _abandoned
    _build_splits, _abandoned = build_splits, abandoned.numpy()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_worker, name="end-with-the-worker", daemon=True).start()


def build() -> None:
    """Have the data set before the first sample is asked for. What goes wrong is raised by `read`, which tries again."""
    with suppress(BaseException):
        _splits()


def read(number: int, split: str, groups: Sequence[Group]) -> Message | Failure | None:
    """A batch for each group of samples of the split; None where the request of this number is abandoned meanwhile."""

    def go_on() -> None:
        if _abandoned[number % SLOTS] == number:
            raise _Abandoned

    batches = []
    try:
        for group in groups:
            go_on()
            batches.append(_splits()[split].read(*group, before_each=go_on))
        return Message.of(batches)
    except _Abandoned:
        return None
    except BaseException as error:  # noqa: BLE001 - whatever a data set raises is the worker's business
        return Failure.of(error)


@cache
def _splits() -> Mapping[str, Samples]:
    return _build_splits()


_build_splits: BuildSplits
_abandoned: NDArray[np.int64]


def _end_with_the_worker() -> None:
    """However it ends: the pipe behind the sentinel closes. The data set may be in the middle of a long call."""
    worker = multiprocessing.parent_process()
    assert worker is not None, "this runs in a process that was started by another one"
    worker.join()
    os._exit(1)


def _view(memory: Tensor, place: _Place) -> Tensor:
    size = place.shape.numel() * place.dtype.itemsize
    return memory[place.start : place.start + size].view(place.dtype).view(place.shape)
