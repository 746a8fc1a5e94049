"""Numbers that depend on nothing but what they are for: permutations and random streams from words such as (seed, step, shard).

The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), written out here:
the streams of numpy's and Python's generators may change between versions, and a resumed run must see the same samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

AUGMENTATION = 1
DROPOUT = 2
OTHER_OPERATORS = 3
DATA_ORDER = 4
READING = 5
COLLATING = 6
"""What a stream is for: its first word, so that equal numbers for different uses give different streams."""


def mix(*words: int) -> int:
    """One 64-bit number out of several, each of which changes about half of its bits."""
    state = 0
    for word in words:
        state = (state + word + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of the samples in one epoch, (size,): the indices sorted by a random number each."""
    start = np.uint64(mix(DATA_ORDER, seed, epoch))
    with np.errstate(over="ignore"):
        keys = start + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_FIRST)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_SECOND)
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")
