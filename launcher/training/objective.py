"""A model under a task: forward passes that give losses and metrics of samples."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError
from launcher.training.data.batches import samples_in
from launcher.training.data.samples import Batch
from launcher.training.tasks import Task, at_least_fp32


class Objective:
    """Called with a batch, it gives what training minimises and what it reports."""

    def __init__(self, model: nn.Module, task: Task, *, precision: str, device: str) -> None:
        """`precision`: "bf16" computes under autocast; all else as the parameters are."""
        self.model = model
        self.task = task
        self.metric_names: tuple[str, ...] | None = None
        """Sorted; known from the first batch on."""
        self._device = device
        self._bf16 = precision == "bf16"

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (n,), and the sums over the samples of losses and metrics (1 + metrics,), the metrics in the order of their names.

        Raises UserCodeError where the task's values are not one a sample, or its metrics not the same every time.
        """
        with self.autocast():
            outputs = self.model(*self.task.inputs(batch))
            losses = self.task.losses(outputs, batch)
        with torch.no_grad():
            metrics = self.task.metrics(outputs, batch)
            names = tuple(sorted(metrics))
            if self.metric_names is None:
                self.metric_names = names
            self._check(losses, metrics, names, samples_in(batch))
            figures = [losses.detach(), *(metrics[name] for name in names)]
            return losses, torch.stack([at_least_fp32(figure).sum() for figure in figures])

    def autocast(self) -> AbstractContextManager[object]:
        """In which the model and its losses are computed."""
        return torch.autocast(torch.device(self._device).type, torch.bfloat16) if self._bf16 else nullcontext()

    def _check(self, losses: Tensor, metrics: dict[str, Tensor], names: tuple[str, ...], samples: int) -> None:
        if names != self.metric_names:
            raise UserCodeError(
                "the task's metrics are not always the same",
                where="task",
                given=", ".join(names),
                expected=", ".join(self.metric_names or ()),
            )
        for name, value in [("losses", losses), *metrics.items()]:
            if value.shape != (samples,):
                raise UserCodeError(
                    f"the task's {name} are not per sample",
                    where="task",
                    given=f"shape {tuple(value.shape)} for {samples} samples",
                    expected=f"shape ({samples},)",
                    next='for a loss of torch, reduction="none"',
                )
