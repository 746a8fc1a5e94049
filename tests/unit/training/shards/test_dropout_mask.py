from __future__ import annotations

import pytest
import torch

from launcher.training.shards.dropout_mask import PER_DRAW, _on, keep_mask, shard_keys, threshold
from launcher.training.shards.random_streams import DROPOUT, draws, extend, mix

pytestmark = pytest.mark.unit
ON_CPU = torch.empty(0)


def test_a_mask_is_that_of_the_shard_layer_and_call_whoever_else_is_there() -> None:
    keys = shard_keys(3, 7, range(2, 6))
    masks = keep_mask(keys, 1, 0, 1001, threshold(0.3), ON_CPU)
    assert masks.shape == (4, 1001)
    for row, shard in enumerate(range(2, 6)):
        assert torch.equal(masks[row : row + 1], keep_mask(shard_keys(3, 7, range(shard, shard + 1)), 1, 0, 1001, threshold(0.3), ON_CPU))
    others = [(shard_keys(3, 8, range(2, 6)), 1, 0), (shard_keys(4, 7, range(2, 6)), 1, 0), (keys, 0, 0), (keys, 1, 1)]
    assert not any(torch.equal(masks, keep_mask(*other, 1001, threshold(0.3), ON_CPU)) for other in others)
    assert torch.equal(masks[:, :10], keep_mask(keys, 1, 0, 10, threshold(0.3), ON_CPU)), (
        "what is drawn first does not depend on how much is"
    )


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_as_many_are_kept_as_the_probability_says(p: float) -> None:
    kept = keep_mask(shard_keys(0, 0, range(8)), 0, 0, 100_000, threshold(p), ON_CPU).double().mean()
    assert abs(kept - (1 - p)) < 0.002


def test_another_device_draws_the_same() -> None:
    begins = [extend(mix(DROPOUT, 3, 7, shard), 1, 2) for shard in range(4)]
    numbers = _on(begins, 251, torch.device("cpu"))
    masks = keep_mask(shard_keys(3, 7, range(4)), 1, 2, 251 * PER_DRAW, threshold(0.4), ON_CPU)
    assert torch.equal(numbers >= threshold(0.4), masks)


def test_the_stream_is_splitmix() -> None:
    """Published first outputs of SplitMix64 begun at 1234567 (Rosetta Code)."""
    import numpy as np

    first = draws(np.array([1234567], dtype=np.uint64), 5)[0].tolist()
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
