"""Synthetic images for benchmarks: random pixels around one random pattern a class. Accuracy on them means nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.in_memory import InMemory


class Synthetic:
    """`train` of `size` samples and `test` of `test_size`, in memory, the same for the same `seed`."""

    def __init__(
        self, shape: Sequence[int] = (1, 8, 8), classes: int = 10, size: int = 4096, test_size: int = 512, noise: float = 1.0, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (size + test_size,), generator=generator)
        patterns = torch.randn(classes, *shape, generator=generator)
        images = patterns[labels] + noise * torch.randn(size + test_size, *shape, generator=generator)
        self.train = InMemory(images[:size], labels[:size])
        self.test = InMemory(images[size:], labels[size:])
