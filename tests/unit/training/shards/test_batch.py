from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import TrainerConfig
from launcher.training.data.data_order import DataOrder
from launcher.training.shards.batch import BatchPlan, share, total_steps

pytestmark = pytest.mark.unit


@given(count=st.integers(0, 200), world_size=st.integers(1, 20))
def test_shares_are_contiguous_and_differ_by_one_at_most(count: int, world_size: int) -> None:
    shares = [share(count, world_size, rank) for rank in range(world_size)]
    assert [item for own in shares for item in own] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(shards=st.integers(1, 24), largest=st.integers(1, 24), data=st.data())
def test_forward_passes_have_full_width_but_for_the_last(shards: int, largest: int, data: st.DataObject) -> None:
    largest = min(largest, shards)
    width = -(-shards // largest)
    plan = BatchPlan(global_batch_size=shards, micro_batch_size=1, width=width)
    world_size = data.draw(st.integers(1, largest))
    for rank in range(world_size):
        *full, last = plan.forwards(world_size, rank)
        assert all(len(shard) == width for shard in full)
        assert 1 <= len(last) <= width
        if world_size == largest:
            assert not full


@given(
    size=st.integers(1, 60),
    micro=st.integers(1, 4),
    shards=st.integers(1, 8),
    width=st.integers(1, 8),
    seed=st.integers(0, 2**63),
    world_sizes=st.lists(st.integers(1, 8), min_size=1, max_size=30),
)
def test_every_sample_comes_once_an_epoch_whatever_the_world_sizes_along_the_way(
    size: int, micro: int, shards: int, width: int, seed: int, world_sizes: list[int]
) -> None:
    plan = BatchPlan(global_batch_size=micro * shards, micro_batch_size=micro, width=width)
    order = DataOrder(size=size, seed=seed)
    stream: list[int] = []
    for step, world_size in enumerate(world_sizes):
        for rank in range(min(world_size, shards)):
            for forward in plan.forwards(min(world_size, shards), rank):
                start = step * plan.global_batch_size + forward.start * micro
                stream += order.samples(start, len(forward) * micro).tolist()
    assert len(stream) == len(world_sizes) * plan.global_batch_size
    for begin in range(0, len(stream) - size + 1, size):
        assert sorted(stream[begin : begin + size]) == list(range(size))


@pytest.mark.parametrize(("epochs", "steps"), [(1, 23), (2, 46), (0.5, 12)])
def test_epochs_are_rounded_up_to_steps(epochs: float, steps: int) -> None:
    assert total_steps(TrainerConfig(epochs=epochs, global_batch_size=64), 1442) == steps
    assert total_steps(TrainerConfig(steps=7), 1442) == 7
