"""The trial before the first step: may several shards share a forward pass?

They may when no random operator runs outside the layers that we compute per shard, and when losses, gradients and buffers of a fused
pass are those of the shards one at a time. Buffers that change outside those layers are found here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.config.schema import JobConfig
from launcher.core.errors import UserCodeError
from launcher.training.data.samples import Batch, read_forward
from launcher.training.objective import Objective
from launcher.training.parts import JobParts
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.per_shard import NotPerShard, PerShardLayers
from launcher.training.shards.random_streams import OTHER_OPERATORS, mix
from launcher.training.step import seed_operators

TOLERANCE = 1e-3
"""Relative difference, in fp32, below which two results are the same one computed in another order."""


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


def try_a_step(parts: JobParts, plan: BatchPlan, config: JobConfig, device: str) -> Trial:
    """Try the first shards of the first step, in fp32; the model is as before then. `plan`: that of fused passes.

    Raises UserCodeError where elastic.exact asks for an algorithm that torch does not have; what the user's own code raises comes out
    unchanged.
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
        if torch.Tag.nondeterministic_seeded in operator.tags and not self._layers.inside:
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Result:
    losses: Tensor
    gradients: list[Tensor]
    statistics: list[Tensor]
    buffers: dict[str, Tensor]


class TrialStep:
    """Forward and backward passes that leave the model as it was."""

    def __init__(self, objective: Objective, layers: PerShardLayers, *, seed: int) -> None:
        self._objective = objective
        self._model: nn.Module = objective.model
        self._layers = layers
        self._seed = seed
        self._start = {name: buffer.clone() for name, buffer in self._model.named_buffers() if id(buffer) not in layers.statistics.buffers}

    def run(self, shards: list[Batch], together: Batch | None, fuse: Literal["auto", "on", "off"], *, exact: bool) -> Trial:
        """`shards`: the batches of the first two shards (or of the only one); `together`: both as one fused pass, None where there is one."""
        with RandomOperators(self._layers) as operators:
            first = self._pass(range(1), shards[0])
        buffers = [name for name, value in first.buffers.items() if not torch.equal(value, self._start[name])]
        random = sorted(set(operators.found))
        if exact:
            return Trial(WarmUp(False, "one shard at a time: elastic.exact"), buffers)
        return Trial(self._judge(shards, together, first, random, fuse), buffers)

    def _judge(self, shards: list[Batch], together: Batch | None, first: _Result, random: list[str], fuse: str) -> WarmUp:
        if fuse == "off":
            return WarmUp(False, "one shard at a time: trainer.fuse=off")
        if together is None:
            return WarmUp(False, "one shard at a time: with workers.max workers each has one")
        if fuse == "on":
            return WarmUp(True, "several shards in one forward pass: trainer.fuse=on")
        if random:
            return WarmUp(False, f"one shard at a time: the model uses random operators of its own ({', '.join(random)})")
        second = self._pass(range(1, 2), shards[1])
        try:
            fused = self._pass(range(2), together)
        except NotPerShard as error:
            return WarmUp(False, f"one shard at a time: {error}")
        differing = _difference(first, second, fused)
        if differing:
            return WarmUp(False, f"one shard at a time: in a fused forward pass the {differing} would differ")
        return WarmUp(True, "several shards in one forward pass: the trial gave the same as one at a time")

    def _pass(self, shards: range, batch: Batch) -> _Result:
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        try:
            seed_operators(mix(OTHER_OPERATORS, self._seed, 0, shards.start))
            self._layers.statistics.begin_step()
            with self._layers.forward(0, shards):
                losses, _ = self._objective(batch)
            torch.autograd.backward(losses, torch.ones_like(losses))
            gradients = [torch.zeros_like(item) if item.grad is None else item.grad for item in parameters]
            now = dict(self._model.named_buffers())
            buffers = {name: now[name].clone() for name in self._start if name in now}
            return _Result(losses.detach(), gradients, self._layers.statistics.sums(), buffers)
        finally:
            for parameter in parameters:
                parameter.grad = None
            self._put_back()

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, buffer in self._model.named_buffers():
            if name in self._start:
                buffer.copy_(self._start[name])


def _difference(first: _Result, second: _Result, fused: _Result) -> str:
    """What of a fused pass is not what the two shards alone gave, in words; "" where all is."""
    if not _close([torch.stack([first.losses, second.losses], 1).flatten()], [fused.losses]):
        return "losses"
    if not _close([a + b for a, b in zip(first.gradients, second.gradients, strict=True)], fused.gradients):
        return "gradients"
    if not _close([a + b for a, b in zip(first.statistics, second.statistics, strict=True)], fused.statistics):
        return "running statistics"
    for name, value in fused.buffers.items():
        wanted = first.buffers[name]
        if value.is_floating_point():
            wanted = (first.buffers[name] + second.buffers[name]) / 2
        if not _close([wanted.float()], [value.float()]):
            return f"buffer {name}"
    return ""


def _close(wanted: list[Tensor], given: list[Tensor]) -> bool:
    """Whether the norm of the difference is small beside the norm of what is wanted, all tensors taken together."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(wanted, given, strict=True))
    scale = sum(float(a.double().square().sum()) for a in wanted)
    return difference <= TOLERANCE**2 * scale + 1e-20
