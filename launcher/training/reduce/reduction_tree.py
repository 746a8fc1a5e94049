"""The order in which exact mode adds up: one fixed binary tree over the V shards of a step. Pure.

A subtree (level, number) covers the shards from number x 2^level to (number + 1) x 2^level, cut at V. Its sum is that of its left half
plus that of its right half; where V leaves nothing for the right half, it is that of the left one. The subtree that covers all
shards is the root. A rank adds what it owns as far as whole subtrees go; what is left over is added by whoever has all ranks'
partial sums. Both do the additions of this one tree, so who owns which shards does not show in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Subtree(NamedTuple):
    """As the module's docstring says: 2^level shards, fewer at the end."""

    level: int
    number: int
    """From the left, within its level."""


class TreeSum(Generic[T]):
    """The additions of the tree, done as early as values come; they come in the order of their shards, beginning anywhere.

    It keeps at most two partial sums a level: fewer than 2 x log2(V) + 2.
    """

    def __init__(self, shards: int, add: Callable[[T, T], T]) -> None:
        """`shards`: V. `add(left, right)` may do its work in place, in either of the two."""
        self._shards = shards
        self._add = add
        self._height = (shards - 1).bit_length()
        self._partials: list[tuple[Subtree, T]] = []

    def add_shard(self, shard: int, value: T) -> None:
        """The value of one shard."""
        self.add(Subtree(0, shard), value)

    def add(self, subtree: Subtree, value: T) -> None:
        """The sum of a subtree, complete."""
        level, number = subtree
        while level < self._height:
            if number % 2 == 1:
                if not self._partials or self._partials[-1][0] != (level, number - 1):
                    break  # another rank owns the left half
                value = self._add(self._partials.pop()[1], value)
            elif (number + 1) << level < self._shards:
                break  # the right half is still to come
            level, number = level + 1, number // 2
        self._partials.append((Subtree(level, number), value))

    @property
    def subtrees(self) -> tuple[Subtree, ...]:
        """What is kept, in the order of shards."""
        return tuple(subtree for subtree, _ in self._partials)

    @property
    def partials(self) -> list[T]:
        """The sums of `subtrees`."""
        return [value for _, value in self._partials]

    @property
    def total(self) -> T:
        """The sum of all shards, once all were added."""
        [(subtree, value)] = self._partials
        assert subtree == (self._height, 0), "every shard was added"
        return value


def subtrees_of(owned: Iterable[int], shards: int) -> tuple[Subtree, ...]:
    """The largest whole subtrees that contiguous shards make up, in their order, of a tree over `shards`."""
    tree: TreeSum[None] = TreeSum(shards, lambda left, right: None)
    for shard in owned:
        tree.add_shard(shard, None)
    return tree.subtrees
