"""Random numbers of one forward pass, a stream for each shard in it.

Each shard's stream of a step is a tape of 16-bit numbers, written in blocks; block b comes from (seed, step, shard, b).
So it does not matter which other shards share the forward pass, nor how much is drawn at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.training.shards.random_streams import DROPOUT, mix

BLOCK = 2048
"""64-bit draws in a block; four numbers each."""
HALF_RANGE = 1 << 15


class RandomTapes:
    """`rewind` at every forward pass; then `take`."""

    def __init__(self, seed: int, device: str) -> None:
        self._seed = seed
        self._device = device
        self._generator = torch.Generator(device)
        self._step = 0
        self._shards = range(0)
        self._tape: Tensor | None = None
        self._position = 0
        self._blocks_last_time = 1

    def rewind(self, step: int, shards: range) -> None:
        """Go to the beginning of these shards' streams of a step. Nothing is drawn before it is needed."""
        self._step, self._shards = step, shards
        self._tape = None
        if self._position:
            self._blocks_last_time = -(-self._position // (4 * BLOCK))
        self._position = 0

    def take(self, count: int) -> Tensor:
        """The next `count` numbers of each shard, (shards, count) int16, uniform over its range."""
        end = self._position + count
        drawn = 0 if self._tape is None else self._tape.shape[1] // (4 * BLOCK)
        needed = -(-end // (4 * BLOCK))
        if self._tape is None:
            self._tape = self._draw(0, max(needed, self._blocks_last_time))
        elif needed > drawn:
            self._tape = torch.cat([self._tape, self._draw(drawn, needed)], dim=1)
        numbers = self._tape[:, self._position : end]
        self._position = end
        return numbers

    def _draw(self, first: int, end: int) -> Tensor:
        drawn = torch.empty(len(self._shards), end - first, BLOCK, dtype=torch.int64, device=self._device)
        for row, shard in enumerate(self._shards):
            for block in range(first, end):
                self._generator.manual_seed(mix(DROPOUT, self._seed, self._step, shard, block))
                drawn[row, block - first].random_(-(2**63), None, generator=self._generator)
        return drawn.view(torch.int16).view(len(self._shards), -1)
