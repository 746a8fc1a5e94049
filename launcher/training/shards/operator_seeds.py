"""Where random numbers begin that a model draws itself, outside of the layers computed per shard."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_operators(seed: int) -> None:
    """torch's own random operators, on every device."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # untyped in torch
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)


def seed_all(seed: int) -> None:
    """Also the generators of Python and NumPy, for models that draw from them."""
    seed_operators(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
