"""Which numbers a Dropout layer keeps: drawn for each shard from a stream of its own, the same on every device.

The stream of (seed, step, shard, layer, call) is SplitMix64 (random_streams.py), four 16-bit numbers to a draw, the lowest bits first. Nothing
is remembered between two calls, so a forward pass that is computed again draws the same again, and it does not matter which shards are
computed together. `layer` counts the Dropout layers of the model in the order of `named_modules()`, `call` the calls of one layer within a
forward pass.

The mask is an operator of its own, so that torch.compile sees one call with tensors and numbers, and nothing of how it is made.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from launcher.training.shards.random_streams import DROPOUT, FIRST, GOLDEN, SECOND, draws, extend, mix

HALF_RANGE = 1 << 15
PER_DRAW = 4
_MASK = (1 << 64) - 1


def shard_keys(seed: int, step: int, shards: range) -> Tensor:
    """What the streams of these shards of a step begin with, (shards,), 64 bits each as int64."""
    return torch.tensor([_signed(mix(DROPOUT, seed, step, shard)) for shard in shards], dtype=torch.int64)


def threshold(p: float) -> int:
    """The smallest number that is kept when each is dropped with probability p; at p = 1 none is."""
    return round(p * 2 * HALF_RANGE) - HALF_RANGE


def keep_mask(keys: Tensor, layer: int, call: int, count: int, threshold: int, like: Tensor) -> Tensor:
    """True for what is kept of `count` numbers of each shard, (shards, count), bool, on the device of `like`; `keys` as of `shard_keys`."""
    begins = [extend(key & _MASK, layer, call) for key in keys.tolist()]
    if threshold >= HALF_RANGE:
        return torch.zeros(len(begins), count, dtype=torch.bool, device=like.device)
    numbers = _on_cpu(begins, -(-count // PER_DRAW)) if like.device.type == "cpu" else _on(begins, -(-count // PER_DRAW), like.device)
    return numbers[:, :count] >= threshold


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _on_cpu(begins: list[int], count: int) -> Tensor:
    """int16 (shards, 4 x count)."""
    return torch.from_numpy(draws(np.array(begins, dtype=np.uint64), count).view(np.int16))


def _on(begins: list[int], count: int, device: torch.device) -> Tensor:
    """The same, computed on another device: its shifts to the right are those of signed numbers."""
    numbers = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_signed(GOLDEN))
    numbers = numbers + torch.tensor([_signed(begin) for begin in begins], dtype=torch.int64).to(device, non_blocking=True).unsqueeze(1)
    for bits, factor in ((30, FIRST), (27, SECOND), (31, None)):
        numbers ^= (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)
        if factor is not None:
            numbers *= _signed(factor)
    return numbers.view(torch.int16)


_operator = torch.library.custom_op("launcher::keep_mask", keep_mask, mutates_args=())


@_operator.register_fake
def _(keys: Tensor, layer: int, call: int, count: int, threshold: int, like: Tensor) -> Tensor:
    return torch.empty(keys.shape[0], count, dtype=torch.bool, device=like.device)


def mask_of(keys: Tensor, layer: int, call: int, count: int, threshold: int, like: Tensor) -> Tensor:
    """`keep_mask`, as one operator where torch.compile looks on."""
    if torch.compiler.is_compiling():
        mask: Tensor = _operator(keys, layer, call, count, threshold, like)
        return mask
    return keep_mask(keys, layer, call, count, threshold, like)
