"""What a job has to do, as plain PyTorch loops in one process. Nothing here imports launcher.

A job with N workers, whatever joined, left, died or was resumed, leaves the parameters, buffers and optimizer state that these loops
leave. `train_on_batches` is the rule. `train_on_shards` is for models whose forward pass depends on what is in the batch (BatchNorm),
draws at random (Dropout) or changes the model's own buffers: its lines say what a shard of the batch means for these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tests.oracle.random_numbers import OTHER_OPERATORS, DropoutByShard, mix

Batch = tuple[Tensor, ...]
Scalars = (bool, int, float, str, type(None))


class Task(Protocol):
    """What is minimised: the sum of `loss` over the batch, divided by the sum of its weights."""

    def inputs(self, batch: Batch) -> tuple[object, ...]: ...

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Parts:
    """What is trained, and by what."""

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    scheduler: Any
    """One of torch.optim.lr_scheduler, or None."""
    grad_clip_norm: float | None
    autocast: Callable[[], AbstractContextManager[object]]
    """The precision in which the model and its loss are computed."""
    nudge: Callable[[nn.Module], None]
    """Called before each update; to find out what rounding alone may change, or nothing."""


def train_on_batches(parts: Parts, batches: Iterable[Batch]) -> Iterator[float]:
    """One step for each batch; gives the loss of each."""
    for batch in batches:
        parts.optimizer.zero_grad()
        with parts.autocast():
            total, weight = parts.task.loss(parts.model(*parts.task.inputs(batch)), batch)
        (total / weight).backward()
        update(parts)
        yield float(total.detach() / weight)


def train_on_shards(parts: Parts, batches: Iterable[list[Batch]], seed: int) -> Iterator[float]:
    """One step for each batch, which is given as its shards; gives the loss of each."""
    model = parts.model
    dropout = DropoutByShard(model, seed)
    for step, shards in enumerate(batches):
        parts.optimizer.zero_grad()
        start, ends, totals = Memory.of(model), [], []
        for shard, batch in enumerate(shards):
            start.put_into(model)  # every shard starts from what the model remembers at the start of the step
            torch.manual_seed(mix(OTHER_OPERATORS, seed, step, shard))
            dropout.begin(step, shard)
            with parts.autocast():
                total, weight = parts.task.loss(model(*parts.task.inputs(batch)), batch)
            total.backward()  # gradients add up over the shards; a parameter that no shard used has none
            ends.append(Memory.of(model))
            totals.append((total.detach().double(), weight.double()))
        loss, weight = (sum(column) for column in zip(*totals, strict=True))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= weight.to(parameter.grad.dtype)
        update(parts)
        start.with_changes(ends).put_into(model)
        yield float(loss / weight)


@torch.no_grad()
def evaluate(parts: Parts, batch: Batch) -> float:
    """The loss of held-out samples."""
    parts.model.eval()
    with parts.autocast():
        total, weight = parts.task.loss(parts.model(*parts.task.inputs(batch)), batch)
    parts.model.train()
    return float(total / weight)


def update(parts: Parts) -> None:
    """Let optimizer and scheduler take the step."""
    parts.nudge(parts.model)
    if parts.grad_clip_norm is not None:
        nn.utils.clip_grad_norm_(parts.model.parameters(), parts.grad_clip_norm)
    parts.optimizer.step()
    if parts.scheduler is not None:
        parts.scheduler.step()


@dataclass(frozen=True)
class Memory:
    """What a model remembers from one forward pass to the next."""

    buffers: dict[tuple[str, str], Tensor]
    """By the names of module and buffer; those that are not persistent too."""
    scalars: dict[tuple[str, str], object]
    """Plain attributes of the modules, such as a count of calls."""

    @classmethod
    def of(cls, model: nn.Module) -> Memory:
        buffers, scalars = {}, {}
        for name, module in model.named_modules():
            buffers |= {(name, key): value.detach().clone() for key, value in module._buffers.items() if value is not None}
            scalars |= {(name, key): value for key, value in vars(module).items() if isinstance(value, Scalars)}
        return cls(buffers, scalars)

    def put_into(self, model: nn.Module) -> None:
        for (name, key), value in self.buffers.items():
            model.get_submodule(name)._buffers[key] = value.clone()
        for (name, key), value in self.scalars.items():
            setattr(model.get_submodule(name), key, value)

    def with_changes(self, ends: list[Memory]) -> Memory:
        """After the step: floating buffers take the mean of the shards' changes, all else is as it is after shard 0."""
        buffers = dict(ends[0].buffers)
        for place, start in self.buffers.items():
            if start.is_floating_point():
                buffers[place] = start + sum(end.buffers[place] - start for end in ends) / len(ends)
        return Memory(buffers, ends[0].scalars)
