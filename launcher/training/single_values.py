"""Torch's error for a BatchNorm that sees one value a channel, as an error that names the key to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launcher.config.schema import TrainerConfig
from launcher.core.errors import UserCodeError

OF_TORCH = "Expected more than 1 value per channel when training"


@contextmanager
def single_values_explained(trainer: TrainerConfig) -> Iterator[None]:
    """For forward passes of training: raises UserCodeError in place of torch's ValueError; all else comes out unchanged."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(OF_TORCH):
            raise
        raise UserCodeError(
            "a BatchNorm layer sees a single value of each channel: its statistics are those of one logical shard",
            where="trainer.micro_batch_size",
            given=f"{trainer.micro_batch_size}; torch: {error}",
            expected=f"2 samples or more, a divisor of trainer.global_batch_size={trainer.global_batch_size}",
            next="set trainer.micro_batch_size, or use a layer that does not normalise over samples, such as GroupNorm or LayerNorm",
        ) from error
