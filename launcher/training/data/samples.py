"""Reading samples, in the order in which forward passes want them, without making the step wait.

A data set that offers `batch(indices)` is in memory: it is read when needed. All others are read ahead by a few threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launcher.core.errors import UserCodeError
from launcher.training.data.data_order import DataOrder
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.random_streams import AUGMENTATION, mix

Batch = tuple[Tensor, ...]
"""What the data set gives, samples along the first dimension: n of them."""
READERS = 4
"""Threads that read ahead."""
STEPS_AHEAD = 2
"""How far they read, beyond the step that is taken."""


class Samples:
    """One split of the data on one device.

    The split is map-style: len(), [index] giving a tuple of tensors. It may also offer batch(indices), the same for many at
    once, and augment(*sample, generator=...), which gives a sample changed at random.
    """

    def __init__(self, split: object, *, where: str, device: str) -> None:
        """`where`: the split's name in errors. Raises UserCodeError for one that cannot be read, or is empty."""
        self._where = where
        self._device = device
        self._item: Callable[[int], tuple[object, ...]] | None = getattr(split, "__getitem__", None)
        self._batch: Callable[[Tensor], object] | None = getattr(split, "batch", None)
        self._augment: Callable[..., object] | None = getattr(split, "augment", None)
        if not isinstance(split, Sized) or (self._batch is None and self._item is None):
            raise UserCodeError(
                "the data cannot be read by index", where=where, given=type(split).__name__, expected="an object with len() and [index]"
            )
        self._split = split
        if len(split) == 0:
            raise UserCodeError("there are no samples", where=where, given="0 samples", expected="at least one")

    def __len__(self) -> int:
        return len(self._split)

    @property
    def immediate(self) -> bool:
        """Whether reading is so quick that nothing is gained by reading ahead."""
        return self._batch is not None and self._augment is None

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Samples as they are, on the device: each tensor (n, ...) for n indices. Raises UserCodeError where the split gives others."""
        return self._moved(self._read(indices))

    def read_augmented(self, indices: NDArray[np.int64], streams: Iterable[int]) -> Batch:
        """Samples after `augment`, each with a generator begun at its number of `streams`; as they are where there is no `augment`.

        Shapes and errors as of `read`.
        """
        augment = self._augment
        if augment is None:
            return self.read(indices)
        generator = torch.Generator()
        changed = (
            augment(*sample, generator=generator.manual_seed(stream))
            for sample, stream in zip(self._one_by_one(indices), streams, strict=True)
        )
        return self._moved(self._stack(changed))

    def _read(self, indices: NDArray[np.int64]) -> Batch:
        if self._batch is not None:
            return self._checked(self._batch(torch.from_numpy(indices)), len(indices))
        return self._stack(self._one_by_one(indices))

    def _one_by_one(self, indices: NDArray[np.int64]) -> Iterator[tuple[object, ...]]:
        if self._batch is not None:
            together = self._read(indices)
            return (tuple(tensor[row] for tensor in together) for row in range(len(indices)))
        assert self._item is not None, "one of the two is there"
        item = self._item
        return (item(int(index)) for index in indices)

    def _stack(self, samples: Iterable[object]) -> Batch:
        columns = list(zip(*(self._checked(sample, None) for sample in samples), strict=True))
        return tuple(torch.stack(column) for column in columns)

    def _checked(self, value: object, count: int | None) -> Batch:
        """`count`: how many samples the value has to hold; None: it is one sample."""
        if not isinstance(value, (tuple, list)) or not value or not all(isinstance(item, Tensor) for item in value):
            given = f"({', '.join(type(item).__name__ for item in value)})" if isinstance(value, (tuple, list)) else type(value).__name__
            raise UserCodeError(
                "a sample is not a tuple of tensors", where=self._where, given=given, expected="for example (image, label), tensors"
            )
        if count is not None and any(len(item) != count for item in value):
            raise UserCodeError(
                "batch(indices) gave another number of samples",
                where=self._where,
                given=", ".join(str(tuple(item.shape)) for item in value),
                expected=f"{count} along the first dimension",
            )
        return tuple(value)

    def _moved(self, batch: Batch) -> Batch:
        return batch if self._device == "cpu" else tuple(tensor.to(self._device, non_blocking=True) for tensor in batch)


class TrainingFeed:
    """The batches of one rank's forward passes, step after step; the threads that read stay from one generation to the next.

    `begin` in each generation, then `step` for one step after the other.
    """

    def __init__(self, samples: Samples, order: DataOrder, plan: BatchPlan, *, end: int) -> None:
        """`end`: the number of steps in all; nothing is read for later ones."""
        self._samples = samples
        self._order = order
        self._plan = plan
        self.forwards: tuple[range, ...] = ()
        """The shards of each forward pass of this rank."""
        self._end = end
        self._readers = None if samples.immediate else ThreadPoolExecutor(READERS, thread_name_prefix="read-samples")
        self._ahead: deque[tuple[int, list[Future[Batch]]]] = deque()

    def step(self, step: int) -> Iterator[Batch]:
        """The batches of a step, one for each of `forwards`; rows as in `read_forward`. Raises what reading them raised."""
        if self._readers is None:
            return (self._read(step, shards) for shards in self.forwards)
        next_step = self._ahead[-1][0] + 1 if self._ahead else step
        for later in range(next_step, min(step + STEPS_AHEAD + 1, self._end)):
            self._ahead.append((later, [self._readers.submit(self._read, later, shards) for shards in self.forwards]))
        at, reading = self._ahead.popleft()
        assert at == step, "steps are taken in order"
        return (future.result() for future in reading)

    def begin(self, forwards: tuple[range, ...]) -> None:
        """From now on these are the rank's forward passes; what was read ahead for others is dropped."""
        for _, reading in self._ahead:
            for future in reading:
                future.cancel()
        self._ahead.clear()
        self.forwards = forwards

    def _read(self, step: int, shards: range) -> Batch:
        return read_forward(self._samples, self._order, self._plan, step, shards)


def read_forward(samples: Samples, order: DataOrder, plan: BatchPlan, step: int, shards: range) -> Batch:
    """The batch of one forward pass, shards interleaved as per_shard.py wants them: sample j of its v-th shard is row j x width + v.

    Each tensor is (width x micro_batch_size, ...), width being the number of `shards`.
    """
    micro = plan.micro_batch_size
    start = step * plan.global_batch_size + shards.start * micro
    indices = order.samples(start, len(shards) * micro).reshape(len(shards), micro).T.reshape(-1)
    if samples.immediate:
        return samples.read(indices)
    epochs = [order.epoch(start + row % len(shards) * micro + row // len(shards)) for row in range(len(indices))]
    streams = (mix(AUGMENTATION, order.seed, epoch, int(index)) for epoch, index in zip(epochs, indices, strict=True))
    return samples.read_augmented(indices, streams)
