"""Handwritten digits that come with scikit-learn: 1797 real images of 8x8 pixels, nothing to download.

Source: the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOLD_OUT = 5
"""Every fifth image of each digit is held out."""


class InMemory:
    """Images (n, 1, 8, 8) and their digits (n,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Many samples at once."""
        return self.images[indices], self.labels[indices]


class Digits:
    """`train` (1442 images) and `test` (355), each digit in the same proportion; pixels have mean 0 and deviation 1 over `train`."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
        labels = torch.from_numpy(digits).long()
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(10):
            held_out[torch.nonzero(labels == digit).flatten()[HOLD_OUT - 1 :: HOLD_OUT]] = True
        mean, deviation = images[~held_out].mean(), images[~held_out].std()
        images = (images - mean) / deviation
        self.train = InMemory(images[~held_out], labels[~held_out])
        self.test = InMemory(images[held_out], labels[held_out])
