"""One optimizer step: computed without changing the state, added up over the ranks once, then applied or dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.core.errors import TrainingDiverged
from launcher.training.data.batches import Batch
from launcher.training.parts import JobParts
from launcher.training.reduce.exchange import Exchange
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.global_generators import begin_all, begin_operators
from launcher.training.shards.random_streams import OTHER_OPERATORS, mix
from launcher.training.shards.tracked_attributes import TrackedAttributes
from launcher.training.shards.tracked_buffers import TrackedBuffers
from launcher.training.shards.trainable_flags import TrainableFlags
from launcher.training.shards.unwritten_parameters import check_unwritten, versions_of
from launcher.training.warm_up import Trial


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
    """Mean over what counts in the batch."""
    metrics: dict[str, float]
    """Means over what counts in the batch."""
    grad_norm: float | None
    """Before clipping; None where nothing is clipped."""
    stop: bool
    """Some rank was asked to stop."""
    switch: bool
    """Every rank knows the decision to go over to the next generation: this step is the last one of theirs."""


@dataclass(frozen=True)
class StepSums:
    """What the step's last collective brought, over the whole batch: scalars as in StepResult."""

    loss: float
    weight: float
    """What the gradients have to be divided by."""
    metrics: dict[str, float]
    stop: bool
    switch: bool
    trained: tuple[bool, ...]
    """Which parameters are trained, after this step's forward passes."""
    begun_to_change: list[bool]
    """Buffers, as TrackedBuffers.names, that nobody knew to change."""
    statistics: list[Tensor]
    """Of the BatchNorm layers, as RunningStatistics.sums; to be divided by the number of shards."""
    buffers: list[Tensor]
    """As TrackedBuffers.sums; to be divided by the number of shards."""
    attributes: list[Tensor]
    """As TrackedAttributes.sums."""


class BuffersBegan(Exception):
    """Some buffers changed for the first time: they have to be tracked, and the step taken again, one shard at a time.

    Raised on every rank in the same step. The trial could not see whether shards may share a forward pass that changes these.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


class TrainingStep:
    """The step on one rank: `run` computes it with the other ranks and applies it."""

    def __init__(
        self,
        parts: JobParts,
        trial: Trial,
        plan: BatchPlan,
        *,
        seed: int,
        grad_clip_norm: float | None,
        device: str,
        on_forward: Callable[[], None],
    ) -> None:
        """`grad_clip_norm`: None where the gradient is not clipped; `on_forward`: called before each forward pass."""
        self._objective = parts.objective
        self._layers = parts.layers
        self._optimizer = parts.state.optimizer
        self._scheduler = parts.state.scheduler
        self._plan = plan
        self._seed = seed
        self._clip = grad_clip_norm
        self._on_forward = on_forward
        self._parameters = list(parts.model.parameters())
        self._state = parts.state
        self._buffers = TrackedBuffers(parts.model, trial.buffers, elsewhere=self._layers.statistics.buffers)
        self._attributes = TrackedAttributes(parts.model, trial.attributes, device=device)
        self._flags = TrainableFlags(self._parameters)
        self._begin_generators = begin_operators if not trial.draws_elsewhere else begin_all
        self._tracked = (self._buffers, self._attributes, self._flags)

    def run(
        self, step: int, forwards: tuple[range, ...], batches: Callable[[], Iterable[Batch]], exchange: Exchange, flags: StepFlags
    ) -> StepResult:
        """Take the state from `step` to `step` + 1.

        forwards: the shards of each forward pass of this rank; batches: gives one for each of them, again at each call.
        Whatever is raised, the parameters and buffers are those before the step: CollectiveBroken, BuffersBegan, TrainingDiverged, the user's
        own.
        """
        sums = self.compute(step, forwards, batches, exchange, flags)
        grad_norm = self.apply(sums, step + 1)
        # Only now: where the generation ends before, ranks go on together of which some did not hear what had begun.
        self._state.buffers = self._buffers.tracked
        exchange.lay_out(sums.trained)
        return StepResult(sums.loss, sums.metrics, grad_norm, sums.stop, sums.switch)

    def compute(
        self, step: int, forwards: tuple[range, ...], batches: Callable[[], Iterable[Batch]], exchange: Exchange, flags: StepFlags
    ) -> StepSums:
        """Gradients of the whole batch in `.grad` of the parameters; nothing else of the state is changed.

        A step that thaws parameters is computed a second time: only its end says, to all ranks alike, that there is more to exchange.
        Whatever is raised, CollectiveBroken, BuffersBegan or the user's own, the state is that before the step.
        """
        try:
            sums = self._compute(step, forwards, batches(), exchange, flags)
            thawed = any(wanted and not there for wanted, there in zip(sums.trained, exchange.trained, strict=True))
            if any(sums.begun_to_change):
                raise BuffersBegan([name for name, begun in zip(self._buffers.names, sums.begun_to_change, strict=True) if begun])
            if thawed:
                self._roll_back()
                exchange.lay_out(sums.trained)
                sums = self._compute(step, forwards, batches(), exchange, flags)
            return sums
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._layers.end_step()

    def begin_generation(self, exchange: Exchange) -> None:
        """Track and exchange what the state says: another rank may have found more than this one's trial."""
        self._buffers.track(self._state.buffers)
        self._attributes.track(self._state.attributes)
        exchange.lay_out(self._flags.now(), self._state.repeated)

    def track_also(self, buffers: list[str]) -> None:
        """These buffers have begun to change. They are state once a step with them is applied."""
        self._buffers.track([*self._buffers.tracked, *buffers])

    def _roll_back(self) -> None:
        for tracked in self._tracked:
            tracked.roll_back()
        for parameter in self._parameters:
            parameter.grad = None

    def _compute(self, step: int, forwards: tuple[range, ...], batches: Iterable[Batch], exchange: Exchange, flags: StepFlags) -> StepSums:
        exchange.begin_step()
        self._layers.statistics.begin_step()
        for tracked in self._tracked:
            tracked.begin_step()
        figures: Tensor | None = None
        for index, (shards, batch) in enumerate(zip(forwards, batches, strict=True)):
            if exchange.per_shard and index > 0:
                figures, flags = None, StepFlags()  # each rank's flags count once
                self._layers.statistics.clear_sums()
                for tracked in self._tracked:
                    tracked.clear_sums()
            loss, values = self.forward(step, shards, batch)
            exchange.check()
            figures = values if figures is None else figures + values
            last = index == len(forwards) - 1
            if last or exchange.per_shard:
                exchange.arm(self._pack(figures, flags, exchange.dtype), last=last)
            # In half precision a sum over many samples may be too large; what counts in them is divided by when it is known.
            if loss.requires_grad:  # a shard may have nothing to learn from
                torch.autograd.backward(loss, torch.full_like(loss, 1.0 / self._plan.global_batch_size))
        return self._unpack(exchange.finish(), exchange.world_size)

    def forward(self, step: int, shards: range, batch: Batch) -> tuple[Tensor, Tensor]:
        """One forward pass: the sum of the losses and the figures, as the objective gives them."""
        self._on_forward()
        self._begin_generators(mix(OTHER_OPERATORS, self._seed, step, shards.start))
        for tracked in self._tracked:
            tracked.begin_forward()
        versions = versions_of(self._parameters)
        with self._layers.forward(step, shards):
            loss, figures = self._objective(batch)
        check_unwritten(self._parameters, versions)
        for tracked in self._tracked:
            tracked.end_forward(shards)
        return loss, figures

    def apply(self, sums: StepSums, step: int) -> float | None:
        """Let optimizer, scheduler and buffers take the step that leads to `step`; the gradient's norm, None where it is not clipped.

        Raises TrainingDiverged before anything is changed.
        """
        if not math.isfinite(sums.loss):
            given = f"loss {sums.loss}" if sums.weight else "a batch in which nothing counts: its weight is 0"
            self._roll_back()
            raise diverged("the loss is not finite", step, given)
        if sums.weight != self._plan.global_batch_size:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, self._plan.global_batch_size / sums.weight)
        norm = None
        if self._clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip))
            if not math.isfinite(norm):
                self._roll_back()
                raise diverged("the gradient is not finite", step, f"norm {norm}")
        self._flags.apply(sums.trained)
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        with torch.no_grad():
            self._layers.statistics.apply(sums.statistics, self._plan.shards)
            self._buffers.apply(sums.buffers, self._plan.shards)
        self._attributes.apply(sums.attributes)
        return norm

    # The step's sums are one flat tensor: figures, stop, switch, buffers that begin to change, trained parameters, running statistics, buffers,
    # attributes.

    def _pack(self, figures: Tensor, flags: StepFlags, dtype: torch.dtype) -> Tensor:
        raised = figures.new_tensor([float(flags.stop), float(flags.switch), *self._buffers.begun_to_change()])
        return torch.cat([part.flatten().to(dtype) for part in (figures, raised, *self._flags.sums(), *self._parts())])

    def _parts(self) -> list[Tensor]:
        return [*self._layers.statistics.sums(), *self._buffers.sums(), *self._attributes.sums()]

    def _unpack(self, packed: Tensor, world_size: int) -> StepSums:
        figures = 2 + 2 * len(self._objective.metric_names or ())
        flags = figures + 2 + len(self._buffers.names)
        position = flags + len(self._parameters)
        numbers = packed[:position].tolist()
        stop, switch, *begun = numbers[figures:flags]
        parts = []
        for part in self._parts():
            parts.append(packed[position : position + part.numel()].view(part.shape))
            position += part.numel()
        loss, weight, metrics = self._objective.means(numbers[:figures])
        statistics = len(self._layers.statistics.sums())
        buffers = statistics + len(self._buffers.sums())
        return StepSums(
            loss,
            weight,
            metrics,
            stop > 0,
            switch == world_size,
            tuple([flag > 0 for flag in numbers[flags:]]),
            [found > 0 for found in begun],
            parts[:statistics],
            parts[statistics:buffers],
            parts[buffers:],
        )


def diverged(what: str, step: int, given: str) -> TrainingDiverged:
    """`step`: the one that was not applied, counted as the state it would have led to."""
    return TrainingDiverged(
        f"{what} at step {step}",
        where=f"step {step}",
        given=given,
        expected="finite numbers",
        next="lower optimizer.lr or set trainer.grad_clip_norm, then resume from the last good checkpoint",
    )


def check_finite(tensors: Mapping[str, Tensor], step: int, buffers: Collection[str]) -> None:
    """Raises TrainingDiverged where a tensor of the state after `step` steps holds a number that is not finite.

    `buffers`: names of those that may hold infinities, as masks do.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    norms = torch._foreach_norm([tensors[name] for name in names], float("inf"))
    for name, norm in zip(names, torch.stack([norm.float() for norm in norms]).tolist(), strict=True):
        if math.isnan(norm) or (math.isinf(norm) and name not in buffers):
            raise diverged("the state is not finite", step, f"{name} holds {norm}")
