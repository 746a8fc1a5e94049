"""An evaluation trains nothing: what a model counts or averages while it is evaluated is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from launcher.training.shards import tracked_attributes, tracked_buffers


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """After the block, buffers and plain numbers in attributes of the model's modules are those before it.

    Each rank evaluates other samples, so what they would be is no part of what all ranks hold.
    """
    buffers, numbers = tracked_buffers.buffers_of(model), tracked_attributes.numbers_of(model)
    try:
        yield
    finally:
        tracked_buffers.put_back(model, buffers)
        tracked_attributes.put_back(model, numbers)
