from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from launcher.training.shards.tracked_attributes import AttributeName, TrackedAttributes
from launcher.training.shards.trainable_flags import TrainableFlags

pytestmark = pytest.mark.unit
VALUES = [0, -1, 2**62 + 1, -(2**63), 0.1, -0.0, math.inf, 5e-324, True, False]


@pytest.mark.parametrize("value", VALUES)
def test_a_number_of_shard_0_reaches_every_rank_bit_for_bit(value: float) -> None:
    ranks = []
    for shards in (range(2), range(2, 3)):
        model = nn.Sequential(nn.Identity())
        model[0].kept = 7
        tracked = TrackedAttributes(model, [AttributeName("0", "kept"), AttributeName("", "made")], device="cpu")
        tracked.begin_step()
        tracked.begin_forward()
        model[0].kept = value if 0 in shards else 99
        model.made = 1.5
        tracked.end_forward(shards)
        ranks.append((model, tracked))
    [total] = [sum(parts) for parts in zip(*(tracked.sums() for _, tracked in ranks), strict=True)]
    for model, tracked in ranks:
        tracked.apply([total])
        assert (type(model[0].kept), repr(model[0].kept)) == (type(value), repr(value))
        assert model.made == 1.5


def test_every_pass_starts_from_the_step_and_a_step_can_be_taken_back() -> None:
    model = nn.Identity()
    tracked = TrackedAttributes(model, [AttributeName("", "made")], device="cpu")
    tracked.begin_step()
    for _ in range(2):
        tracked.begin_forward()
        assert not hasattr(model, "made")
        model.made = 1
        tracked.end_forward(range(1))
    tracked.roll_back()
    assert not hasattr(model, "made")


def test_flags_are_those_after_shard_0() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    flags = TrainableFlags(parameters)
    flags.begin_step()
    parameters[0].requires_grad_(False)
    flags.end_forward(range(1, 2))
    assert flags.sums()[0].tolist() == [0.0, 0.0, 0.0]
    flags.begin_forward()
    assert flags.now() == (True, True, True)
    parameters[1].requires_grad_(False)
    flags.end_forward(range(2))
    assert flags.sums()[0].tolist() == [1.0, 0.0, 1.0]
    flags.roll_back()
    flags.apply((True, False, False))
    assert flags.now() == (True, False, False)
