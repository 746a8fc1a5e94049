"""The endless stream of samples: each epoch a permutation, one epoch after the other, batches crossing the borders.

Sample i of step k is element k x global_batch_size + i. Nothing here knows of ranks or world sizes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from launcher.training.shards.random_streams import permutation


class DataOrder:
    """The stream over a data set of `size` samples."""

    def __init__(self, *, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._epoch = lru_cache(maxsize=3)(lambda epoch: permutation(seed, epoch, size))

    def samples(self, start: int, count: int) -> NDArray[np.int64]:
        """Indices into the data set of the elements start <= i < start + count, (count,)."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.size)
            piece = self._epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    def at(self, elements: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of elements of the stream, (n,) in any order: indices into the data set, and which pass over the data they belong to; (n,) each."""
        start = int(elements.min())
        return self.samples(start, int(elements.max()) + 1 - start)[elements - start], elements // self.size
