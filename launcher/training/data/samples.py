"""Reading samples of one split, in one thread or process at a time: the data set's own methods, what they draw, and the batch made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from launcher.core.errors import UserCodeError
from launcher.training.data.batches import Batch, assembled, checked, with_each
from launcher.training.data.data_order import DataOrder
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.global_generators import begin_on_cpu, put_back_on_cpu
from launcher.training.shards.random_streams import AUGMENTATION, COLLATING, READING, mix


class Samples:
    """One split of the data on one device.

    The split is map-style: len(), and [index] giving a sample. Where it offers them, these are used:
    batch(indices): a batch of many samples at once, for a tensor of indices; such a split is in memory.
    __getitems__(indices): a list of samples, for a list of indices.
    augment(*sample, generator=...): a sample changed at random; for training only.
    collate_fn(samples): one batch of a list of samples; else it is made as torch's default_collate does.
    """

    def __init__(self, split: object, *, where: str, device: str, seed: int) -> None:
        """`where`: the split's name in errors; `seed`: of what is drawn while reading.

        Raises UserCodeError for a split that cannot be read, or is empty.
        """
        self.where = where
        self._device = device
        self._seed = seed
        self._item: Callable[[int], object] | None = getattr(split, "__getitem__", None)
        self._items: Callable[[list[int]], Sequence[object]] | None = getattr(split, "__getitems__", None)
        self._batch: Callable[[Tensor], object] | None = getattr(split, "batch", None)
        self._augment: Callable[..., object] | None = getattr(split, "augment", None)
        self._collate: Callable[[list[Any]], object] | None = getattr(split, "collate_fn", None)
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

    @property
    def collates(self) -> bool:
        """Whether the split makes batches of its samples itself, so that two batches may differ in form."""
        return self._collate is not None and not self.immediate

    @property
    def in_groups(self) -> bool:
        """Whether what is read depends on which samples are read together."""
        return not self.immediate and (self._collate is not None or self._items is not None)

    def read(
        self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None, *, before_each: Callable[[], None] | None = None
    ) -> Batch:
        """One batch of these samples, in their order, on the device; each tensor (n, ...) for n indices.

        `epochs`: (n,) the pass over the data that each sample is read in; None: they are read to evaluate, and not augmented. What the
        split draws from global generators depends on seed, epoch and sample; the generators are as before when this returns.
        `before_each`: called before each sample that is read alone; what it raises comes out.
        Raises UserCodeError where the split gives what cannot be used; what the split's own code raises comes out unchanged.
        """
        if self._batch is not None and (self._augment is None or epochs is None):
            return self.moved(self._together(self._batch, indices))
        with put_back_on_cpu():
            samples = self._samples(indices, epochs, before_each)
            if self._collate is None:
                return self.moved(self._default_batch(samples))
            begin_on_cpu(self._stream(COLLATING, indices, epochs, 0))
            return self.moved(checked(self._collate(samples), len(samples), where=self.where, source="collate_fn"))

    def moved(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return batch if self._device == "cpu" else with_each(batch, lambda tensor: tensor.to(self._device, non_blocking=True))

    @property
    def pinned(self) -> bool:
        """Whether a batch is better in memory from which a GPU can read."""
        return self._device != "cpu"

    def _samples(
        self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None, before_each: Callable[[], None] | None
    ) -> list[object]:
        given: Sequence[object] | None = None
        if self._batch is not None:
            together = self._together(self._batch, indices)
            given = [with_each(together, itemgetter(row)) for row in range(len(indices))]
        elif self._items is not None:
            begin_on_cpu(self._stream(READING, indices, epochs, 0))
            given = self._items([int(index) for index in indices])
            if len(given) != len(indices):
                raise UserCodeError(
                    "__getitems__ gave another number of samples",
                    where=self.where,
                    given=f"{len(given)} samples",
                    expected=f"{len(indices)}, one for each index",
                )
        generator = torch.Generator()
        samples = []
        for row, index in enumerate(indices):
            if before_each is not None:
                before_each()
            begin_on_cpu(self._stream(READING, indices, epochs, row))
            if given is not None:
                sample = given[row]
            else:
                assert self._item is not None, "one of them is there"
                sample = self._item(int(index))
            if self._augment is not None and epochs is not None:
                parts = sample if isinstance(sample, (tuple, list)) else (sample,)
                generator.manual_seed(self._stream(AUGMENTATION, indices, epochs, row))
                sample = self._augment(*parts, generator=generator)
            samples.append(sample)
        return samples

    def _stream(self, use: int, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None, row: int) -> int:
        passes = () if epochs is None else (int(epochs[row]),)
        return mix(use, self._seed, *passes, int(indices[row]))

    def _together(self, batch: Callable[[Tensor], object], indices: NDArray[np.int64]) -> Batch:
        return checked(batch(torch.from_numpy(indices)), len(indices), where=self.where, source="batch(indices)")

    def _default_batch(self, samples: list[object]) -> Batch:
        try:
            batch = default_collate(samples)
        except (TypeError, RuntimeError) as error:
            raise UserCodeError(
                "samples cannot be made one batch",
                where=self.where,
                given=str(error),
                expected="for example (image, label): tensors, arrays or numbers, of the same shape in every sample",
                next="give samples one form, or the data set a collate_fn",
            ) from error
        return checked(batch, len(samples), where=self.where, source="a sample")


def read_forward(samples: Samples, order: DataOrder, plan: BatchPlan, step: int, shards: range) -> Batch:
    """The batch of one forward pass, shards interleaved as per_shard.py wants them: sample j of its v-th shard is row j x width + v.

    Each tensor is (width x micro_batch_size, ...), width being the number of `shards`. Read here and now. Raises as `Samples.read`.
    """
    micro = plan.micro_batch_size
    first = step * plan.global_batch_size
    if samples.immediate:  # which pass over the data it is does not matter
        indices = order.samples(first + shards.start * micro, len(shards) * micro)
        return samples.read(indices.reshape(len(shards), micro).T.reshape(-1))
    if not samples.in_groups or len(shards) == 1:
        rows = np.arange(shards.start * micro, shards.stop * micro).reshape(len(shards), micro).T.reshape(-1)
        return samples.read(*order.at(first + rows))
    groups = [range(shard * micro, (shard + 1) * micro) for shard in shards]
    parts = [(group, samples.read(*order.at(np.arange(first + group.start, first + group.stop)))) for group in groups]
    return samples.moved(assembled(parts, range(groups[0].start, groups[-1].stop), micro, where=samples.where, pinned=False))
