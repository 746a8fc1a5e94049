"""An evaluation trains nothing: what a model counts or averages while it is evaluated is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from launcher.training.shards.tracked_attributes import is_number
from launcher.training.shards.tracked_buffers import restore_buffer


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """After the block, buffers and plain numbers in attributes of the model's modules are those before it.

    Each rank evaluates other samples, so what they would be is no part of what all ranks hold.
    """
    modules = list(model.modules())
    buffers = [(module, name, value.clone()) for module in modules for name, value in module._buffers.items() if value is not None]
    numbers = [
        (module, name, value) for module in modules for name, value in vars(module).items() if is_number(value) and name != "training"
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, value in buffers:
                restore_buffer(module, name, value)
        for module, name, number in numbers:
            setattr(module, name, number)
