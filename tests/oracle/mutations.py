"""One rule of the engine taken away at a time: what the oracle is worth is that some case of a kind then fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from launcher.training import step, warm_up
from launcher.training.reduce.gradient_exchange import GradientExchange
from launcher.training.shards.running_statistics import RunningStatistics
from launcher.training.shards.tracked_buffers import TrackedBuffers
from launcher.training.state.train_state import TrainState
from launcher.training.step import TrainingStep
from launcher.training.trainer import Trainer
from tests.oracle import optimizers

Patch = tuple[Any, str, Any]
"""Object, attribute, and what takes its place."""


@dataclass(frozen=True)
class Mutation:
    """A rule, and the kind of cases that has to notice when the engine does not keep it."""

    name: str
    kind: str
    patches: Callable[[], tuple[Patch, ...]]


def _no_gradient_is_zero() -> tuple[Patch, ...]:
    apply = TrainingStep.apply

    def with_zeros(self: TrainingStep, *arguments: Any, **named: Any) -> Any:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return apply(self, *arguments, **named)

    return ((TrainingStep, "apply", with_zeros),)


def _clipped_by_twice_the_norm() -> tuple[Patch, ...]:
    apply = TrainingStep.apply

    def clipped_less(self: TrainingStep, *arguments: Any, **named: Any) -> Any:
        chosen, self._clip = self._clip, self._clip and 2 * self._clip
        try:
            return apply(self, *arguments, **named)
        finally:
            self._clip = chosen

    return ((TrainingStep, "apply", clipped_less),)


def _persistent_buffers_alone() -> tuple[Patch, ...]:
    tensors = TrainState.tensors

    def persistent(self: TrainState) -> dict[str, torch.Tensor]:
        kept = self.model.state_dict().keys()
        return {name: value for name, value in tensors(self).items() if not name.startswith("model.") or name[len("model.") :] in kept}

    return ((TrainState, "tensors", persistent),)


def _model_alone() -> tuple[Patch, ...]:
    return ((TrainState, "load", lambda self, tensors, document: self.load_model(tensors)),)


def _optimizer_of_what_is_trained_at_first() -> tuple[Patch, ...]:
    build = optimizers.optimizer
    chosen = lambda parameters, *rest, **named: build([each for each in parameters if each.requires_grad], *rest, **named)  # noqa: E731
    return ((optimizers, "optimizer", chosen),)


def _gradients_stay() -> tuple[Patch, ...]:
    return ((GradientExchange, "begin_step", lambda self: setattr(self, "_armed", False)),)


def _statistics_go_from_pass_to_pass() -> tuple[Patch, ...]:
    end_forward = RunningStatistics.end_forward

    def keep(self: RunningStatistics) -> None:
        end_forward(self)
        self._starts = [scratch.mean(2) for scratch in self._scratch]

    return ((RunningStatistics, "end_forward", keep),)


def _any_pass_may_be_fused() -> tuple[Patch, ...]:
    return ((warm_up, "_difference", lambda wanted, given, tolerance=0.0: ""),)


def _one_sum_for_all() -> tuple[Patch, ...]:
    def fast(self: Trainer, collective: Any) -> Any:
        return GradientExchange(list(self._parts.model.parameters()), collective)

    return ((Trainer, "_make_exchange", fast),)


MUTATIONS = (
    Mutation("the gradients of a step are its own", "dense", _gradients_stay),
    Mutation("clipping takes the norm that was asked for", "dense", _clipped_by_twice_the_norm),
    Mutation("the optimizer's state goes to who joins", "dense", _model_alone),
    Mutation("in exact mode the sum follows one tree", "dense", _one_sum_for_all),
    Mutation("every shard starts from the buffers of the step's start", "buffers", lambda: ((TrackedBuffers, "begin_forward", _nothing),)),
    Mutation("buffers take the step's changes", "buffers", lambda: ((TrackedBuffers, "apply", _nothing),)),
    Mutation("passes are fused only where that changes nothing", "buffers", _any_pass_may_be_fused),
    Mutation("every shard starts from the same running statistics", "batch norm", _statistics_go_from_pass_to_pass),
    Mutation("random operators are seeded by shard", "own random operators", lambda: ((step, "begin_operators", _nothing),)),
    Mutation("a parameter without a gradient is left alone", "unused parameters", _no_gradient_is_zero),
    Mutation("a parameter that no sample reached is left alone", "used by chance", _no_gradient_is_zero),
    Mutation("a frozen parameter is left alone", "freezes", _no_gradient_is_zero),
    Mutation("buffers that are not persistent belong to the state", "non-persistent buffers", _persistent_buffers_alone),
    Mutation("a parameter that is frozen at first is trained later", "thaws", _optimizer_of_what_is_trained_at_first),
)
WITHOUT_MUTATION = {
    "layers computed again draw and count as in the forward pass": ("recomputed dropout", "recomputed batch norm"),
    "a gradient is sent once it is complete": ("recomputed shared weights",),
    "sparse gradients are added up": ("sparse embedding",),
    "the optimizer's state has the names of its own parameters": ("parameter groups",),
    "plain attributes belong to the state": ("attributes",),
    "a sample counts as much as its weight": ("weighted samples",),
}
"""Rules that no mutation takes away yet, and the kinds of cases that would notice."""


def _nothing(*arguments: Any) -> None:
    """In place of what does something."""


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The engine without one rule, by the name of its mutation; None: as it is."""
    with ExitStack() as stack:
        for mutation in MUTATIONS:
            if mutation.name == name:
                for each in mutation.patches():
                    stack.enter_context(patch.object(*each))
        yield
