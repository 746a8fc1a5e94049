"""What training needs to know of a problem: the model's inputs, a loss and metrics as sums that can be added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from launcher.core.errors import UserCodeError
from launcher.training.data.batches import Batch


class WeightedSum(NamedTuple):
    """A mean that is not divided yet: over the whole batch it is the sum of all `total` divided by the sum of all `weight`."""

    total: Tensor
    """(), a number."""
    weight: Tensor
    """(), how much counts: samples, tokens that are no padding, class weights."""


def over_samples(values: Tensor) -> WeightedSum:
    """The mean over samples of one value each, (n,)."""
    wide = at_least_fp32(values)
    return WeightedSum(wide.sum(), wide.new_tensor(float(values.numel())))


class Task(Protocol):
    """Losses and metrics are sums with their weights, so that a mean over the batch is the same however its samples are grouped."""

    def inputs(self, batch: Batch) -> tuple[object, ...]:
        """The arguments that the model is called with."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> WeightedSum:
        """Training minimises its mean over the global batch."""
        ...

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, WeightedSum]:
        """Figures to watch, reported as means. The same names every time."""
        ...

    def check(self, outputs: Any, batch: Batch) -> None:
        """Raise an error that explains why the model's outputs do not fit the data; called once, before training."""
        ...


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Sums over many samples lose too much in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class Classification:
    """Batches (inputs, labels), labels (n,) whole numbers; the model gives class scores (n, classes). Metric: accuracy.

    The loss is torch's cross-entropy with its mean: samples labelled `ignore_index` do not count, neither in the loss nor in the accuracy,
    and with `class_weights` each sample counts in the loss as much as its class.
    """

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int = -100, class_weights: Sequence[float] | None = None) -> None:
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.class_weights = None if class_weights is None else torch.tensor([*class_weights], dtype=torch.float64)

    def inputs(self, batch: Batch) -> tuple[object, ...]:
        return tuple(batch[:-1])

    def loss(self, outputs: Tensor, batch: Batch) -> WeightedSum:
        scores, labels = at_least_fp32(outputs), batch[-1]
        weights = self._weights(scores)
        try:
            total = functional.cross_entropy(
                scores, labels, weights, ignore_index=self.ignore_index, reduction="sum", label_smoothing=self.label_smoothing
            )
        except IndexError:  # only a CPU raises it; looking before each step would make it wait
            raise _too_few_classes(outputs, labels) from None
        counted = labels != self.ignore_index
        if weights is None:
            return WeightedSum(total, torch.count_nonzero(counted).to(total.dtype))
        return WeightedSum(total, (weights[labels.where(counted, 0)] * counted).sum())

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, WeightedSum]:
        labels = batch[-1]
        counted = labels != self.ignore_index
        right = (outputs.detach().argmax(1) == labels) & counted
        return {"accuracy": WeightedSum(torch.count_nonzero(right).float(), torch.count_nonzero(counted).float())}

    def _weights(self, scores: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        if self.class_weights.device != scores.device or self.class_weights.dtype != scores.dtype:
            self.class_weights = self.class_weights.to(scores.device, scores.dtype)
        return self.class_weights

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
        counted = labels[labels != self.ignore_index]
        if counted.numel() and (int(counted.max()) >= outputs.shape[1] or int(counted.min()) < 0):
            raise _too_few_classes(outputs, labels)


def _too_few_classes(outputs: Tensor, labels: Tensor) -> UserCodeError:
    return UserCodeError(
        "the model has fewer classes than the data",
        where="model, task (classification)",
        given=f"scores for {outputs.shape[1]} classes, labels from {int(labels.min())} to {int(labels.max())}",
        expected="labels from 0 to classes - 1",
        next="set the model's number of classes",
    )
