"""How the batch of a step is cut: logical shards, the ranks that own them, the forward passes that compute them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import TrainerConfig


def share(count: int, world_size: int, rank: int) -> range:
    """The contiguous part of range(count) that a rank owns; where it does not divide, the first ranks own one more."""
    each, more = divmod(count, world_size)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a job cuts its batches, whatever the world size."""

    global_batch_size: int
    """B, samples of one step."""
    micro_batch_size: int
    """Samples of one shard."""
    width: int
    """Shards in one forward pass at the most."""

    @property
    def shards(self) -> int:
        """V, of the whole batch."""
        return self.global_batch_size // self.micro_batch_size

    def forwards(self, world_size: int, rank: int) -> tuple[range, ...]:
        """The shards of each forward pass of a rank: full width, then the remainder."""
        own = share(self.shards, world_size, rank)
        return tuple(own[start : start + self.width] for start in range(0, len(own), self.width))


def total_steps(trainer: TrainerConfig, data_size: int) -> int:
    """Optimizer steps of the whole training."""
    if trainer.steps is not None:
        return trainer.steps
    assert trainer.epochs is not None, "the configuration has one of the two"
    return math.ceil(trainer.epochs * data_size / trainer.global_batch_size)
