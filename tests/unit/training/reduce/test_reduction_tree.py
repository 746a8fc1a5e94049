"""Any split of the shards among ranks gives the additions of one tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.training.reduce.reduction_tree import Subtree, TreeSum, subtrees_of
from launcher.training.shards.batch import share

pytestmark = pytest.mark.unit


def bracketed(left: str, right: str) -> str:
    return f"({left}+{right})"


def added(shards: int, cuts: list[int]) -> str:
    """What comes out where the ranks own the shards between cuts: an addition that tells how it was done."""
    whole: TreeSum[str] = TreeSum(shards, bracketed)
    for start, end in zip([0, *cuts], [*cuts, shards], strict=True):
        own: TreeSum[str] = TreeSum(shards, bracketed)
        for shard in range(start, end):
            own.add_shard(shard, str(shard))
        assert own.subtrees == subtrees_of(range(start, end), shards)
        assert len(own.partials) <= 2 * max(1, shards.bit_length())
        for subtree, value in zip(own.subtrees, own.partials, strict=True):
            whole.add(subtree, value)
    return whole.total


@given(st.data())
def test_the_additions_do_not_depend_on_who_owns_which_shards(data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, 70))
    cuts = sorted(data.draw(st.sets(st.integers(1, shards - 1), max_size=min(9, shards - 1)))) if shards > 1 else []
    assert added(shards, cuts) == added(shards, [])


@pytest.mark.parametrize("shards", range(1, 20))
def test_nor_on_the_world_size(shards: int) -> None:
    wanted = added(shards, [])
    for world_size in range(2, shards + 1):
        assert added(shards, [share(shards, world_size, rank).start for rank in range(1, world_size)]) == wanted


@pytest.mark.parametrize(
    ("shards", "wanted"),
    [
        (1, "0"),
        (2, "(0+1)"),
        (3, "((0+1)+2)"),
        (4, "((0+1)+(2+3))"),
        (5, "(((0+1)+(2+3))+4)"),
        (6, "(((0+1)+(2+3))+(4+5))"),
        (7, "(((0+1)+(2+3))+((4+5)+6))"),
        (8, "(((0+1)+(2+3))+((4+5)+(6+7)))"),
    ],
)
def test_the_tree_is_the_one_that_runs_were_computed_with(shards: int, wanted: str) -> None:
    """Another one would be as good, but a run that is resumed must go on with its own."""
    assert added(shards, []) == wanted


def test_a_range_is_its_largest_whole_subtrees() -> None:
    assert subtrees_of(range(3), 8) == (Subtree(1, 0), Subtree(0, 2))
    assert subtrees_of(range(3, 6), 8) == (Subtree(0, 3), Subtree(1, 2))
    assert subtrees_of(range(4, 6), 6) == (Subtree(2, 1),)
    assert subtrees_of(range(5), 5) == (Subtree(3, 0),)


def test_a_sum_that_misses_a_shard_is_none() -> None:
    tree: TreeSum[int] = TreeSum(4, lambda left, right: left + right)
    for shard in range(3):
        tree.add_shard(shard, 1)
    with pytest.raises(ValueError, match="unpack"):
        _ = tree.total
