"""Ordinary models that a launcher can get wrong without a word. Inputs (n, 1, 8, 8), three classes; all in double precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.unit.training.small_jobs import CLASSES

HERE = "tests.unit.training.user_models"


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x.flatten(1))))


class Freezes(Flat):
    """`spare` takes no part; `first` is frozen in the third step, thawed in the fifth."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.first.requires_grad_(self.calls not in (3, 4))
        return super().forward(x)


class Thaws(Flat):
    """`first` is frozen when it is built, and thawed in the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                self.first.requires_grad_(True)
        return super().forward(x)


class UsesByChance(Flat):
    """`rare` has a part in those samples alone whose first number is large: in some steps on one rank, in some on none."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.Linear(64, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        chosen = x.flatten(1)[:, 0] > 3.2
        if chosen.any():
            scores = scores.clone()
            scores[chosen] = scores[chosen] + self.rare(x.flatten(1)[chosen])
        return scores


class SharesRecomputed(Flat):
    """One weight in two blocks that are computed again."""

    def __init__(self, reentrant: bool = True) -> None:
        super().__init__()
        self.middle = nn.Linear(16, 16).double()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x.flatten(1)))
        for _ in range(2):
            hidden = torch.tanh(checkpoint(self.middle, hidden, use_reentrant=self.reentrant))
        return self.last(hidden)


class Looks(Flat):
    """Sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, CLASSES, sparse=True).double()

    def forward(self, x: Tensor) -> Tensor:
        words = (x.flatten(1)[:, :3].abs() * 5).long().clamp(max=19)
        return super().forward(x) + self.table(words).sum(1)


class ChangesItsInput(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


def decay_groups(parameters: list[nn.Parameter], lr: float = 0.05) -> torch.optim.Optimizer:
    """Two groups, in another order than the model's."""
    others, matrices = [item for item in parameters if item.dim() < 2], [item for item in parameters if item.dim() >= 2]
    return torch.optim.AdamW([{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}], lr=lr)


# what cannot be compared with a whole batch: layers that look at the samples of a shard


class Recomputed(nn.Module):
    def __init__(self, again: str = "nothing") -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.3)).double()
        self.last = nn.Linear(32, CLASSES).double()
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.again == "nothing" or not self.training:
            return self.last(self.block(x))
        x.requires_grad_()
        return self.last(checkpoint(self.block, x, use_reentrant=self.again == "reentrant"))


class Remembers(Flat):
    """A buffer that is not persistent and matters for the output, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(2, dtype=torch.float64), persistent=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            with torch.no_grad():
                self.level.mul_(0.9).add_(0.1 * torch.stack([x.mean(), x.std()]))
        return super().forward(x) * (1 + self.level[0] * self.level[1] + 0.01 * self.calls)


class BeginsLater(Flat):
    """A buffer that begins to change in the third step, and matters within the pass that changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(64, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            if self.seen > 2:
                self.level = 0.8 * self.level + 0.2 * x.detach().flatten(1).mean(0)
        return super().forward(x.flatten(1) * (1 + self.level))


# what is refused


class ListKeeper(Flat):
    """What it computes depends on how often it was called, by an attribute that is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(1.0)
        return super().forward(x) * len(self.history)


class OwnGenerator(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype))


class RecomputesFromABuffer(Flat):
    """What is computed again sees a buffer that has changed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def scaled(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.add_(1.0)
        return torch.relu(self.first(x)) * self.scale.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.scaled, x.flatten(1), use_reentrant=False))


class DrawsElsewhere(Flat):
    def forward(self, x: Tensor) -> Tensor:
        import random

        import numpy as np

        return super().forward(x + random.random() + float(np.random.rand()) if self.training else x)
