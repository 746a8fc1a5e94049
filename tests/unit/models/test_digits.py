"""The digits read from scikit-learn's file are those that scikit-learn itself gives."""

from __future__ import annotations

import pytest
import torch

from models.digits import Digits

pytestmark = pytest.mark.unit


def test_they_are_the_ones_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    data = Digits()
    labels = torch.cat([data.train.labels, data.test.labels])
    assert torch.equal(labels.bincount(), torch.from_numpy(digits).bincount())
    images = torch.from_numpy(pixels).float()
    known = {(*row.tolist(), digit) for row, digit in zip(images.round().int(), digits.tolist(), strict=True)}
    mean, deviation = _moments(images, data)
    for split in (data.train, data.test):
        restored = (split.images * deviation + mean).round().int().flatten(1)
        assert all((*row.tolist(), digit) in known for row, digit in zip(restored, split.labels.tolist(), strict=True))


def _moments(images: torch.Tensor, data: Digits) -> tuple[float, float]:
    """Undo the normalisation: the darkest pixel is 0 and the brightest 16."""
    low, high = float(data.train.images.min()), float(data.train.images.max())
    assert (float(images.min()), float(images.max())) == (0.0, 16.0)
    deviation = 16.0 / (high - low)
    return -low * deviation, deviation
