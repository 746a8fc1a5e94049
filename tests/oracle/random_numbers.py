"""The random numbers of a job, by the formulas that the rule names: which numbers a shard of a step draws, whoever computes it.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). Nothing here imports launcher.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
DROPOUT = 2
OTHER_OPERATORS = 3
CHANNELS = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}
"""The Dropout layers of torch, and whether they drop whole channels."""


def mix(*words: int) -> int:
    """One 64-bit number out of several."""
    state = 0
    for word in words:
        state = (state + word + GOLDEN) & MASK
        state = ((state ^ (state >> 30)) * FIRST) & MASK
        state = ((state ^ (state >> 27)) * SECOND) & MASK
        state ^= state >> 31
    return state


def draw(key: int, count: int) -> Tensor:
    """The first `count` 16-bit numbers of the stream `key`, (count,) int16: four of each 64-bit output."""
    with np.errstate(over="ignore"):
        state = np.uint64(key) + np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND)
    state ^= state >> np.uint64(31)
    return torch.from_numpy(state.astype("<u8").view("<i2")[:count].astype(np.int16))


class DropoutByShard:
    """The Dropout layers of a model, each mask drawn from (seed, step, shard, layer, call)."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        """From now on the model's layers of torch's own types draw so; a subclass draws as its author wrote it."""
        self._seed = seed
        layers = [layer for layer in model.modules() if type(layer) in CHANNELS]
        for index, layer in enumerate(layers):
            layer.forward = partial(self._drop, layer, index)

    def begin(self, step: int, shard: int) -> None:
        """What follows is the forward pass of this shard."""
        self._step, self._shard = step, shard
        self._calls: Counter[int] = Counter()

    def _drop(self, layer: nn.Dropout, index: int, x: Tensor) -> Tensor:
        if not layer.training or layer.p == 0.0:
            return x
        torch.empty((), dtype=torch.int64).random_()  # by this number a call is known again where the pass is computed again
        shape = x.shape[:2] + (1,) * (x.dim() - 2) if CHANNELS[type(layer)] else x.shape
        key = mix(DROPOUT, self._seed, self._step, self._shard, index, self._calls[index])
        self._calls[index] += 1
        numbers = draw(key, shape.numel() if isinstance(shape, torch.Size) else int(np.prod(shape))).to(torch.int32)
        kept = (numbers >= round(layer.p * 65536) - 32768).view(shape)
        return x * (kept.to(x.dtype) * (1.0 / (1.0 - layer.p) if layer.p < 1.0 else 0.0))
