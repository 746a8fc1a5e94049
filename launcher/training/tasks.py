"""What training needs to know of a problem: the model's inputs, a loss and metrics for each sample."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from launcher.core.errors import UserCodeError
from launcher.training.data.samples import Batch


class Task(Protocol):
    """Losses and metrics are per sample, so that their sums are the same however samples are grouped."""

    def inputs(self, batch: Batch) -> tuple[object, ...]:
        """The arguments that the model is called with."""
        ...

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """One loss a sample, (n,); training minimises their mean."""
        ...

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Figures to watch, one number a sample, (n,) each; reported as means. The same names every time."""
        ...

    def check(self, outputs: Any, batch: Batch) -> None:
        """Raise an error that explains why the model's outputs do not fit the data; called once, before training."""
        ...


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Sums over many samples lose too much in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class Classification:
    """Batches (inputs, labels), labels (n,) whole numbers; the model gives class scores (n, classes). Metric: accuracy."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(batch[:-1])

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        try:
            return functional.cross_entropy(at_least_fp32(outputs), batch[-1], reduction="none", label_smoothing=self.label_smoothing)
        except IndexError:  # on CUDA such a label ends the process instead: asking before each step would make it wait
            raise _too_few_classes(outputs, batch[-1]) from None

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": (outputs.detach().argmax(1) == batch[-1]).float()}

    def check(self, outputs: Any, batch: Batch) -> None:
        labels = batch[-1]
        where = "model, task (classification)"
        if labels.dim() != 1 or labels.is_floating_point():
            raise UserCodeError(
                "the labels do not fit classification",
                where="data, task (classification)",
                given=f"labels of shape {tuple(labels.shape)}, {labels.dtype}",
                expected=f"({len(labels)},) whole numbers",
            )
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(labels):
            given = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UserCodeError("the model's output does not fit classification", where=where, given=given, expected="scores (n, classes)")
        if int(labels.max()) >= outputs.shape[1] or int(labels.min()) < 0:
            raise _too_few_classes(outputs, labels)


def _too_few_classes(outputs: Tensor, labels: Tensor) -> UserCodeError:
    return UserCodeError(
        "the model has fewer classes than the data",
        where="model, task (classification)",
        given=f"scores for {outputs.shape[1]} classes, labels from {int(labels.min())} to {int(labels.max())}",
        expected="labels from 0 to classes - 1",
        next="set the model's number of classes",
    )
