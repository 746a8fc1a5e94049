"""Numbers that depend on nothing but what they are for: permutations and random streams from words such as (seed, step, shard).

The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), written out here:
the streams of numpy's and Python's generators may change between versions, and a resumed run must see the same samples.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
"""The constants of SplitMix64: the distance of its states, and the two factors of its output function."""

AUGMENTATION = 1
DROPOUT = 2
OTHER_OPERATORS = 3
DATA_ORDER = 4
READING = 5
COLLATING = 6
"""What a stream is for: its first word, so that equal numbers for different uses give different streams."""


def mix(*words: int) -> int:
    """One 64-bit number out of several, each of which changes about half of its bits."""
    return extend(0, *words)


def extend(state: int, *words: int) -> int:
    """extend(mix(*first), *second) is mix(*first, *second)."""
    for word in words:
        state = (state + word + GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * FIRST) & _MASK
        state = ((state ^ (state >> 27)) * SECOND) & _MASK
        state ^= state >> 31
    return state


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of the samples in one epoch, (size,): the indices sorted by a random number each."""
    start = np.array([mix(DATA_ORDER, seed, epoch)], dtype=np.uint64)
    return np.argsort(draws(start, size)[0], kind="stable")


def draws(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of the stream of each key, (keys, count): SplitMix64 begun at the key."""
    with np.errstate(over="ignore"):
        numbers = keys[:, None] + states(count)
        shifted = numbers >> np.uint64(30)
        numbers ^= shifted
        numbers *= np.uint64(FIRST)
        np.right_shift(numbers, np.uint64(27), out=shifted)
        numbers ^= shifted
        numbers *= np.uint64(SECOND)
    np.right_shift(numbers, np.uint64(31), out=shifted)
    numbers ^= shifted
    return numbers


@lru_cache(maxsize=64)
def states(count: int) -> NDArray[np.uint64]:
    """The first `count` states of SplitMix64 begun at 0, (count,), read-only."""
    made = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    made.flags.writeable = False
    return made
