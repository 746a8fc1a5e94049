"""One optimizer step: computed without changing the state, added up over the ranks once, then applied or dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.core.errors import TrainingDiverged
from launcher.training.data.samples import Batch
from launcher.training.parts import JobParts
from launcher.training.reduce.exchange import Exchange
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.random_streams import OTHER_OPERATORS, mix
from launcher.training.shards.tracked_buffers import TrackedBuffers


@dataclass(frozen=True)
class StepFlags:
    """What a rank tells the others with its part of a step, so that all ranks act on it after the same step."""

    stop: bool = False
    """This rank was asked to end the training."""
    switch: bool = False
    """This rank knows the decision to go over to the next generation."""


@dataclass(frozen=True)
class StepResult:
    """What is known of a step once it is applied, the same on every rank."""

    loss: float
    """Mean over all samples of the batch."""
    metrics: dict[str, float]
    """Means over all samples of the batch."""
    grad_norm: float | None
    """Before clipping; None where nothing is clipped."""
    stop: bool
    """Some rank was asked to stop."""
    switch: bool
    """Every rank knows the decision to go over to the next generation: this step is the last one of theirs."""


@dataclass(frozen=True)
class StepSums:
    """What the step's last collective brought, over all B samples: scalars as in StepResult."""

    loss: float
    metrics: dict[str, float]
    stop: bool
    switch: bool
    statistics: list[Tensor]
    """Of the BatchNorm layers, as RunningStatistics.sums; to be divided by the number of shards."""
    buffers: list[Tensor]
    """As TrackedBuffers.sums; to be divided by the number of shards."""


class TrainingStep:
    """The step on one rank: `run` computes it with the other ranks and applies it."""

    def __init__(
        self,
        parts: JobParts,
        buffers: TrackedBuffers,
        plan: BatchPlan,
        *,
        seed: int,
        grad_clip_norm: float | None,
        on_forward: Callable[[], None],
    ) -> None:
        """`grad_clip_norm`: None where the gradient is not clipped; `on_forward`: called before each forward pass."""
        self._objective = parts.objective
        self._layers = parts.layers
        self._buffers = buffers
        self._optimizer = parts.state.optimizer
        self._scheduler = parts.state.scheduler
        self._plan = plan
        self._seed = seed
        self._clip = grad_clip_norm
        self._on_forward = on_forward
        self._parameters = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]

    def run(self, step: int, forwards: tuple[range, ...], batches: Iterable[Batch], exchange: Exchange, flags: StepFlags) -> StepResult:
        """Take the state from `step` to `step` + 1.

        forwards: the shards of each forward pass of this rank; batches: one for each of them.
        Whatever is raised, the parameters and buffers are those before the step: CollectiveBroken, TrainingDiverged, the user's own.
        """
        sums = self.compute(step, forwards, batches, exchange, flags)
        grad_norm = self.apply(sums, step + 1)
        return StepResult(sums.loss, sums.metrics, grad_norm, sums.stop, sums.switch)

    def compute(self, step: int, forwards: tuple[range, ...], batches: Iterable[Batch], exchange: Exchange, flags: StepFlags) -> StepSums:
        """Gradients of the whole batch in `.grad` of the parameters; nothing else of the state is changed.

        Whatever is raised, CollectiveBroken or the user's own, the state is that before the step.
        """
        try:
            return self._compute(step, forwards, batches, exchange, flags)
        except BaseException:
            self._buffers.roll_back()
            for parameter in self._parameters:
                parameter.grad = None
            raise

    def _compute(self, step: int, forwards: tuple[range, ...], batches: Iterable[Batch], exchange: Exchange, flags: StepFlags) -> StepSums:
        exchange.begin_step()
        self._layers.statistics.begin_step()
        self._buffers.begin_step()
        figures: Tensor | None = None
        for index, (shards, batch) in enumerate(zip(forwards, batches, strict=True)):
            if exchange.per_shard and index > 0:
                figures, flags = None, StepFlags()  # each rank's flags count once
                self._layers.statistics.clear_sums()
                self._buffers.clear_sums()
            losses, values = self.forward(step, shards, batch)
            exchange.check()
            figures = values if figures is None else figures + values
            last = index == len(forwards) - 1
            if last or exchange.per_shard:
                exchange.arm(self._pack(figures, flags, exchange.dtype), last=last)
            torch.autograd.backward(losses, torch.full_like(losses, 1.0 / self._plan.global_batch_size))
        return self._unpack(exchange.finish(), exchange.world_size)

    def forward(self, step: int, shards: range, batch: Batch) -> tuple[Tensor, Tensor]:
        """One forward pass: losses (n,) and sums (1 + metrics,) as the objective gives them."""
        self._on_forward()
        seed_operators(mix(OTHER_OPERATORS, self._seed, step, shards.start))
        self._buffers.begin_forward()
        with self._layers.forward(step, shards):
            losses, sums = self._objective(batch)
        self._buffers.end_forward(shards)
        return losses, sums

    def apply(self, sums: StepSums, step: int) -> float | None:
        """Let optimizer, scheduler and buffers take the step that leads to `step`; the gradient's norm, None where it is not clipped.

        Raises TrainingDiverged before anything is changed.
        """
        if not math.isfinite(sums.loss):
            raise diverged("the loss is not finite", step, f"loss {sums.loss}")
        norm = None
        if self._clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip))
            if not math.isfinite(norm):
                raise diverged("the gradient is not finite", step, f"norm {norm}")
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        with torch.no_grad():
            self._layers.statistics.apply(sums.statistics, self._plan.shards)
            self._buffers.apply(sums.buffers, self._plan.shards)
        return norm

    # The step's sums are one flat tensor: loss, metrics, stop, switch, running statistics, tracked buffers.

    def _pack(self, figures: Tensor, flags: StepFlags, dtype: torch.dtype) -> Tensor:
        raised = figures.new_tensor([float(flags.stop), float(flags.switch)])
        return torch.cat([part.flatten().to(dtype) for part in (figures, raised, *self._parts())])

    def _parts(self) -> list[Tensor]:
        return [*self._layers.statistics.sums(), *self._buffers.sums()]

    def _unpack(self, packed: Tensor, world_size: int) -> StepSums:
        names = self._objective.metric_names or ()
        loss, *values, stop, switch = packed[: len(names) + 3].tolist()
        parts = []
        position = len(names) + 3
        for part in self._parts():
            parts.append(packed[position : position + part.numel()].view(part.shape))
            position += part.numel()
        samples = self._plan.global_batch_size
        kept = len(self._layers.statistics.sums())
        means = {name: value / samples for name, value in zip(names, values, strict=True)}
        return StepSums(loss / samples, means, stop > 0, switch == world_size, parts[:kept], parts[kept:])


def diverged(what: str, step: int, given: str) -> TrainingDiverged:
    """`step`: the one that was not applied, counted as the state it would have led to."""
    return TrainingDiverged(
        f"{what} at step {step}",
        where=f"step {step}",
        given=given,
        expected="finite numbers",
        next="lower optimizer.lr or set trainer.grad_clip_norm, then resume from the last good checkpoint",
    )


def check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises TrainingDiverged where a tensor of the state after `step` steps holds a number that is not finite."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    norms = torch._foreach_norm([tensors[name] for name in names], float("inf"))
    for name, norm in zip(names, torch.stack([norm.float() for norm in norms]).tolist(), strict=True):
        if not norm < float("inf"):
            raise diverged("the state is not finite", step, f"{name} holds {norm}")


def seed_operators(seed: int) -> None:
    """Where torch's own random operators begin, on every device."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # untyped in torch
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
