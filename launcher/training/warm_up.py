"""The trial before the first step: does the engine compute what a plain loop would, and may several shards share a forward pass?

They may when no random operator runs outside the layers that we compute per shard, and when losses, gradients and buffers of a fused
pass are those of the shards one at a time. What a model keeps between its forward passes is found here too: buffers, and plain numbers among
the attributes of its modules. A model that would train otherwise than in a plain loop is refused: one that gives other gradients because
parts of it are computed again, or another result when the same pass is computed twice from the same state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.config.schema import JobConfig
from launcher.core.errors import UserCodeError
from launcher.training import recomputation
from launcher.training.data.batches import Batch, tensors_of, with_each
from launcher.training.data.samples import read_forward
from launcher.training.objective import Objective
from launcher.training.parts import JobParts
from launcher.training.shards import tracked_attributes, tracked_buffers
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.global_generators import begin_all
from launcher.training.shards.per_shard import NotPerShard, PerShardLayers
from launcher.training.shards.random_streams import OTHER_OPERATORS, mix
from launcher.training.shards.tracked_attributes import AttributeName, Number, numbers_of
from launcher.training.shards.unwritten_parameters import check_unwritten, versions_of

TOLERANCE = 1e-3
"""Relative difference, in fp32, below which two results are the same one computed in another order."""
REPEATED = 1e-5
"""The same for a pass that is computed twice, where the device has no operator whose additions come in any order."""


@dataclass(frozen=True)
class WarmUp:
    """What was decided."""

    fused: bool
    """Whether several shards share a forward pass."""
    reason: str
    """In words, for the events."""


@dataclass(frozen=True)
class Trial:
    """What was found out."""

    warm_up: WarmUp
    buffers: list[str]
    """Names of buffers that change while training, outside of BatchNorm layers."""
    attributes: list[AttributeName]
    """Plain numbers that change while training."""
    repeated: list[nn.Parameter]
    """Parameters that get their gradient in several parts in one backward pass."""
    draws_elsewhere: bool
    """Whether the model draws from the generators of Python or NumPy."""
    changes_inputs: bool
    """Whether the model writes into the batch that it is given."""


def try_a_step(parts: JobParts, plan: BatchPlan, config: JobConfig, device: str) -> Trial:
    """Try the first shards of the first step, in fp32; the model is as before then. `plan`: that of fused passes.

    Raises UserCodeError where the model would train otherwise than in a plain loop, or elastic.exact asks for an algorithm that torch does
    not have; what the user's own code raises comes out unchanged.
    """
    pair = min(2, plan.width)
    shards = [read_forward(parts.train, parts.order, plan, 0, range(index, index + 1)) for index in range(pair)]
    together = read_forward(parts.train, parts.order, plan, 0, range(2)) if pair == 2 else None
    objective = Objective(parts.model, parts.objective.task, precision="fp32", device=device)
    try:
        return TrialStep(objective, parts.layers, seed=config.seed).run(shards, together, config.trainer.fuse, exact=config.elastic.exact)
    except RuntimeError as error:
        if config.elastic.exact and "deterministic implementation" in str(error):
            raise UserCodeError(
                "torch has no deterministic algorithm for an operator of the job",
                where="elastic.exact",
                given=str(error).partition(".")[0],
                expected="operators that give the same bits each time",
                next="use another operator, or elastic.exact=false",
            ) from error
        raise


class RandomOperators(TorchDispatchMode):  # type: ignore[no-untyped-call] # untyped in torch
    """Notes the random operators that run outside the layers computed per shard."""

    def __init__(self, layers: PerShardLayers) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # untyped in torch
        self.found: list[str] = []
        self._layers = layers

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in operator.tags and not self._layers.inside and _draws(operator, args, kwargs or {}):
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


def _draws(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that may draw does: attention without dropout does not."""
    names = [argument.name for argument in operator._schema.arguments]
    if "dropout_p" not in names:
        return True
    at = names.index("dropout_p")
    return bool(kwargs.get("dropout_p", args[at] if at < len(args) else 0.0))


@dataclass(frozen=True)
class _Result:
    loss: Tensor
    gradients: list[Tensor]
    statistics: list[Tensor]
    buffers: dict[str, Tensor]
    numbers: dict[AttributeName, Number]
    draws_elsewhere: bool
    """Whether the forward pass drew from the generators of Python or NumPy."""


@dataclass
class _Observed:
    """What a pass does besides computing."""

    random: list[str] = field(default_factory=list)
    """Random operators outside of the layers computed per shard."""
    computes_again: bool = False
    gradients: dict[nn.Parameter, int] = field(default_factory=dict)
    """In how many parts each parameter got its gradient."""
    objects: list[str] = field(default_factory=list)
    """Attributes that are other objects, or have other contents, than before; numbers are not among them."""


class TrialStep:
    """Forward and backward passes that leave the model as it was."""

    def __init__(self, objective: Objective, layers: PerShardLayers, *, seed: int) -> None:
        self._objective = objective
        self._model: nn.Module = objective.model
        self._parameters = list(self._model.parameters())
        self._layers = layers
        self._seed = seed
        self._buffers = tracked_buffers.buffers_of(self._model)
        self._numbers = numbers_of(self._model)
        self._trained = [parameter.requires_grad for parameter in self._parameters]

    def run(self, shards: list[Batch], together: Batch | None, fuse: Literal["auto", "on", "off"], *, exact: bool) -> Trial:
        """`shards`: the batches of the first two shards (or of the only one); `together`: both as one fused pass, None where there is one."""
        observed = _Observed()
        with self._observing(observed):
            first = self._pass(range(1), given := _copied(shards[0]))
        changes_inputs = any(not torch.equal(now, before) for now, before in zip(tensors_of(given), tensors_of(shards[0]), strict=True))
        self._check(first, shards[0], observed)
        return Trial(
            self._judge(shards, together, first, observed, fuse, exact=exact),
            [name for name, value in first.buffers.items() if not torch.equal(value, self._buffers[name])],
            [name for name in sorted(first.numbers) if _differ(first.numbers[name], self._numbers.get(name))],
            [parameter for parameter, parts in observed.gradients.items() if parts > 1],
            first.draws_elsewhere,
            changes_inputs,
        )

    def _check(self, first: _Result, batch: Batch, observed: _Observed) -> None:
        """Raise UserCodeError where the model does not compute what a plain loop would."""
        what = _difference(first, self._pass(range(1), _copied(batch)), REPEATED if first.loss.device.type == "cpu" else TOLERANCE)
        if what:
            kept = f"; between two passes these change: {', '.join(observed.objects)}" if observed.objects else ""
            raise UserCodeError(
                "the model does not compute the same again from the same state",
                where="model",
                given=f"one forward and backward pass, twice, from the same parameters, buffers and random numbers: other {what}{kept}",
                expected="a result that follows from the state, which other ranks and a checkpoint have as well",
                next="keep what forward changes in buffers, or as plain numbers in attributes, and draw from torch's default generator",
            )
        if not observed.computes_again:
            return
        with recomputation.none():
            plain = self._pass(range(1), _copied(batch))
        what = _difference(plain, first)
        if what:
            raise UserCodeError(
                "activation checkpointing changes what the model computes",
                where="model, activation checkpointing",
                given=f"the same forward and backward pass with and without it: other {what}",
                expected="the same, as what is computed again has to be what was computed before",
                next="use checkpoint(..., use_reentrant=False, preserve_rng_state=True), and nothing inside that depends on a buffer it changes",
            )

    def _judge(self, shards: list[Batch], together: Batch | None, first: _Result, observed: _Observed, fuse: str, *, exact: bool) -> WarmUp:
        if exact:
            return WarmUp(False, "one shard at a time: elastic.exact")
        if fuse == "off":
            return WarmUp(False, "one shard at a time: trainer.fuse=off")
        if together is None:
            return WarmUp(False, "one shard at a time: with workers.max workers each has one")
        if fuse == "on":
            return WarmUp(True, "several shards in one forward pass: trainer.fuse=on")
        if observed.random or first.draws_elsewhere:
            operators = sorted(set(observed.random)) or ["of Python or NumPy"]
            return WarmUp(False, f"one shard at a time: the model uses random operators of its own ({', '.join(operators)})")
        second = self._pass(range(1, 2), _copied(shards[1]))
        try:
            fused = self._pass(range(2), _copied(together))
        except NotPerShard as error:
            return WarmUp(False, f"one shard at a time: {error}")
        differing = _difference(_both(first, second), fused)
        if differing:
            return WarmUp(False, f"one shard at a time: in a fused forward pass the {differing} would differ")
        return WarmUp(True, "several shards in one forward pass: the trial gave the same as one at a time")

    def _pass(self, shards: range, batch: Batch) -> _Result:
        parameters = [parameter for parameter in self._parameters if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        try:
            begin_all(mix(OTHER_OPERATORS, self._seed, 0, shards.start))
            elsewhere, versions = _states_elsewhere(), versions_of(self._parameters)
            self._layers.statistics.begin_step()
            with self._layers.forward(0, shards):
                loss, _ = self._objective(batch)
            now = dict(self._model.named_buffers())
            # One that has another shape afterwards is a cache, which each rank may have as it needs it.
            buffers = {name: now[name].clone() for name, start in self._buffers.items() if name in now and now[name].shape == start.shape}
            numbers = numbers_of(self._model)
            draws_elsewhere = _states_elsewhere() != elsewhere
            if loss.requires_grad:
                torch.autograd.backward(loss, torch.ones_like(loss))
            check_unwritten(self._parameters, versions)
            gradients = [torch.zeros_like(item) if item.grad is None else item.grad.to_dense() for item in self._parameters]
            return _Result(loss.detach(), gradients, self._layers.statistics.sums(), buffers, numbers, draws_elsewhere)
        finally:
            self._layers.end_step()
            for parameter in self._parameters:
                parameter.grad = None
            self._put_back()

    def _put_back(self) -> None:
        tracked_buffers.put_back(self._model, self._buffers)
        tracked_attributes.put_back(self._model, self._numbers)
        for parameter, trained in zip(self._parameters, self._trained, strict=True):
            parameter.requires_grad_(trained)

    @contextmanager
    def _observing(self, observed: _Observed) -> Iterator[None]:
        """Fill `observed` with what is done meanwhile."""
        objects = _contents_of(self._model)

        def got_a_part(parameter: nn.Parameter) -> None:
            observed.gradients[parameter] = observed.gradients.get(parameter, 0) + 1

        hooks = [
            parameter.register_post_accumulate_grad_hook(got_a_part)  # type: ignore[no-untyped-call] # untyped in torch
            for parameter in self._parameters
            if parameter.requires_grad
        ]

        def computes_again() -> None:
            observed.computes_again = True

        try:
            with RandomOperators(self._layers) as operators, recomputation.watched(computes_again):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        observed.random = operators.found
        now = _contents_of(self._model)
        observed.objects = sorted(str(at) for at in now if at not in objects or now[at] != objects[at])


def _copied(batch: Batch) -> Batch:
    return with_each(batch, torch.clone)


def _contents_of(model: nn.Module) -> dict[AttributeName, tuple[int, int]]:
    """What else its modules keep as attributes of their own: which object, and how many things are in it."""
    numbers, of_every_module = numbers_of(model), vars(nn.Module()).keys()
    return {
        AttributeName(path, name): (id(value), _size(value))
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if AttributeName(path, name) not in numbers and name not in of_every_module
    }


def _size(value: object) -> int:
    try:
        return len(value) if isinstance(value, Collection) else 0
    except TypeError:  # a tensor or an array of one number
        return 0


def _states_elsewhere() -> tuple[object, ...]:
    """Of the generators of Python and NumPy."""
    return random.getstate(), repr(np.random.get_state(legacy=False))


def _both(first: _Result, second: _Result) -> _Result:
    """What one pass over both shards has to give."""
    buffers = {name: (value + second.buffers[name]) / 2 if value.is_floating_point() else value for name, value in first.buffers.items()}
    return _Result(
        first.loss + second.loss,
        [a + b for a, b in zip(first.gradients, second.gradients, strict=True)],
        [a + b for a, b in zip(first.statistics, second.statistics, strict=True)],
        buffers,
        first.numbers,
        first.draws_elsewhere,
    )


def _difference(wanted: _Result, given: _Result, tolerance: float = TOLERANCE) -> str:
    """What of a pass is not what another one gave, in words; "" where all is."""
    if not _close([wanted.loss], [given.loss], tolerance):
        return "losses"
    if not _close(wanted.gradients, given.gradients, tolerance):
        return "gradients"
    if not _close(wanted.statistics, given.statistics, tolerance):
        return "running statistics"
    for name, value in given.buffers.items():
        if name in wanted.buffers and not _close([wanted.buffers[name].float()], [value.float()], tolerance):
            return f"values in buffer {name}"
    return ""


def _differ(one: Number | None, other: Number | None) -> bool:
    return type(one) is not type(other) or (one != other and not (one != one and other != other))


def _close(wanted: list[Tensor], given: list[Tensor], tolerance: float) -> bool:
    """Whether the norm of each difference is small beside that of what is wanted, or very small beside that of all tensors taken together.

    The second is for gradients that would be zero but for rounding, as of a bias before a BatchNorm.
    """
    norms = [float(torch.where(torch.isfinite(a), a, 0).double().norm()) for a in wanted]
    whole = math.sqrt(sum(norm**2 for norm in norms))
    for a, b, norm in zip(wanted, given, norms, strict=True):
        same = (a == b) | (a.isnan() & b.isnan())
        difference = float(torch.where(same, 0, a - b).double().norm())
        if not difference <= tolerance * norm + tolerance / 100 * whole + 1e-10:
            return False
    return True
