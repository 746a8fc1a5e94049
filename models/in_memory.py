"""A split of a data set that lies in memory."""

from __future__ import annotations

from torch import Tensor


class InMemory:
    """Images (n, *shape) and their labels (n,)."""

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
