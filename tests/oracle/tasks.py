"""The data and the task of the oracle's jobs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from launcher.training.tasks import WeightedSum, over_samples
from tests.oracle.models import CLASSES, FEATURES, TOKENS

Batch = tuple[Tensor, ...]


class Split:
    """Numbers (FEATURES,), tokens (2,), a label and a weight for each sample."""

    def __init__(self, size: int, seed: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)
        self.inputs = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64).add(self.labels.view(-1, 1) * 0.5).to(dtype)
        self.tokens = torch.randint(TOKENS, (size, 2), generator=generator)
        self.weights = torch.randint(1, 5, (size,), generator=generator).to(dtype)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        return self.inputs[indices], self.tokens[indices], self.labels[indices], self.weights[indices]


class Data:
    def __init__(self, size: int, double: bool) -> None:
        dtype = torch.float64 if double else torch.float32
        self.train, self.test = Split(size, 1, dtype), Split(5, 2, dtype)


class Classify:
    """Cross-entropy, or the model's own losses; every sample counts once, or as much as its weight says."""

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch[:3]

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum to minimise, and the weight to divide by, both over the samples of the batch."""
        values = self.values(outputs, batch)
        weights = batch[3].to(values.dtype) if self.weighted else torch.ones_like(values)
        return (values * weights).sum(), weights.sum()

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """The losses, one a sample, (n,)."""
        if isinstance(outputs, dict) and "losses" in outputs:
            losses: Tensor = outputs["losses"]
            return losses
        scores = scores_of(outputs)
        return functional.cross_entropy(scores.float() if scores.dtype == torch.bfloat16 else scores, batch[2], reduction="none")


class EngineTask(Classify):
    """The same as the engine wants it."""

    def loss(self, outputs: Any, batch: Batch) -> WeightedSum:
        return WeightedSum(*super().loss(outputs, batch))

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, WeightedSum]:
        return {"score": over_samples(scores_of(outputs).detach()[:, 0])}

    def check(self, outputs: Any, batch: Batch) -> None: ...


def scores_of(outputs: Any) -> Tensor:
    scores: Tensor = outputs["scores"] if isinstance(outputs, dict) else outputs
    return scores
