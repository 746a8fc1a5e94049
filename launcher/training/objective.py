"""A model under a task: forward passes that give losses and metrics of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError
from launcher.training.data.batches import Batch, with_each
from launcher.training.tasks import Task, WeightedSum


class Objective:
    """Called with a batch, it gives what training minimises and what it reports."""

    def __init__(self, model: nn.Module, task: Task, *, precision: str, device: str) -> None:
        """`precision`: "bf16" computes under autocast; all else as the parameters are."""
        self.model = model
        self.task = task
        self.metric_names: tuple[str, ...] | None = None
        """Sorted; known from the first batch on."""
        self.changes_inputs = False
        """Whether the model writes into the batch that it is given: it gets a copy then."""
        self._device = device
        self._bf16 = precision == "bf16"

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses, (), and figures (2 + 2 x metrics,): total and weight of the loss, then of each metric in the order of names.

        Raises UserCodeError where the task's values are no weighted sums, or its metrics not the same every time.
        """
        if self.changes_inputs:
            batch = with_each(batch, torch.clone)
        with self.autocast():
            outputs = self.model(*self.task.inputs(batch))
            loss = self.task.loss(outputs, batch)
        with torch.no_grad():
            metrics = self.task.metrics(outputs, batch)
            names = tuple(sorted(metrics))
            if names != self.metric_names:
                self._take(loss, metrics, names)
            pairs = [loss, *(metrics[name] for name in names)]
            return loss.total, torch.stack([part.detach() for pair in pairs for part in pair])

    def means(self, figures: Iterable[float]) -> tuple[float, float, dict[str, float]]:
        """Of figures that were added up: the loss's mean, its weight, the metrics' means. A mean over nothing is NaN."""
        totals = list(figures)
        loss, weight, *rest = totals
        names = self.metric_names or ()
        return _mean(loss, weight), weight, {name: _mean(rest[2 * at], rest[2 * at + 1]) for at, name in enumerate(names)}

    def autocast(self) -> AbstractContextManager[object]:
        """In which the model and its losses are computed."""
        return torch.autocast(torch.device(self._device).type, torch.bfloat16) if self._bf16 else nullcontext()

    def _take(self, loss: object, metrics: dict[str, WeightedSum], names: tuple[str, ...]) -> None:
        """Look at the first values that the task gives; their names have to stay."""
        if self.metric_names is not None:
            raise UserCodeError(
                "the task's metrics are not always the same", where="task", given=", ".join(names), expected=", ".join(self.metric_names)
            )
        for what, value in [("loss", loss), *((f"metric {name}", value) for name, value in metrics.items())]:
            if not isinstance(value, WeightedSum) or not all(isinstance(part, Tensor) and part.dim() == 0 for part in value):
                raise UserCodeError(
                    f"the task's {what} is no weighted sum",
                    where="task",
                    given=_described(value),
                    expected="launcher.training.tasks.WeightedSum(total, weight), two tensors of one number each",
                    next='sum over the batch, for a loss of torch with reduction="sum", and say how much counts; '
                    "over_samples does it for one value a sample",
                )
        self.metric_names = names


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else math.nan


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"{type(value).__name__} of {', '.join(_described(part) for part in value)}"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
