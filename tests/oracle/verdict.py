"""One case, played on the engine and by the plain loop, and what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from launcher.training.data.data_order import DataOrder
from tests.oracle import ranks
from tests.oracle.cases import Case, settings_of
from tests.oracle.comparison import Difference, State, compare, distances, same_bits, state_of
from tests.oracle.models import build, by_shard
from tests.oracle.optimizers import optimizer, scheduler
from tests.oracle.plain_loop import Parts, evaluate, train_on_batches, train_on_shards
from tests.oracle.tasks import Classify, Data

NUDGED = 3
"""Plain loops with other roundings."""
FLOORS = {"fp64": 0.0, "fp32": 1e-5, "bf16": 2e-2}
"""What is allowed in any case, as a part of a tensor's largest number."""
LOSSES = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.1}
"""How far a loss may be away, as a part of it."""
ROUNDING = {"fp32": 2.0**-22, "bf16": 2.0**-8}
"""In gradients, as a part of the largest number."""


@dataclass(frozen=True)
class Plain:
    """What a plain loop left."""

    state: State
    losses: list[float]
    """Of each step."""
    held_out: float
    """Loss of the held-out samples at the end."""


def play(case: Case) -> float:
    """The largest difference between engine and plain loop, as a part of what is allowed. Raises Difference, and what the engine raises."""
    wanted = plain(case)
    noise: dict[str, float] | None = None
    if case.precision != "fp64":
        noise = {}
        for index in range(NUDGED):
            nudged = plain(case, partial(nudge, size=ROUNDING[case.precision], generator=torch.Generator().manual_seed(index)))
            for name, distance in distances(nudged.state, wanted.state).items():
                noise[name] = max(noise.get(name, 0.0), distance)
    group = ranks.train(case)
    states = [_left_by(member) for member in group.members]
    for rank, state in enumerate(states[1:], 1):
        if name := same_bits(states[0], state):
            raise Difference(f"ranks 0 and {rank} hold different states at the end: {name}")
    floor = FLOORS[case.precision]
    largest = compare(states[0], wanted.state, noise, floor)
    _compare_losses(group, wanted, case)
    _compare_names(group.members[0], states[0])
    if case.exact and (case.changes or case.ranks > 1):
        alone = _left_by(ranks.train(replace(case, ranks=1, changes=())).members[0])
        if name := same_bits(states[0], alone):
            raise Difference(f"with elastic.exact the bits depend on the ranks: {name}")
    return largest


def plain(case: Case, nudge: Callable[[nn.Module], None] = lambda model: None) -> Plain:
    """Train a case's job by the plain loop, over whole batches where its model allows that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        double = case.precision == "fp64"
        torch.manual_seed(case.seed)
        model = build(case.model, double=double, recompute=False)
        chosen = optimizer(model.parameters(), **settings_of(case))
        schedule = None if case.scheduler is None else scheduler(chosen, case.scheduler, case.steps)
        bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
        autocast = bf16 if case.precision == "bf16" else nullcontext
        parts = Parts(model, Classify(case.weighted), chosen, schedule, case.grad_clip_norm, autocast, nudge)
        data, size = Data(case.samples, double), case.shards * case.micro
        order = DataOrder(size=case.samples, seed=case.seed)
        batches = [torch.from_numpy(order.samples(step * size, size)) for step in range(case.steps)]
        # the gradient of one backward pass is rounded to bf16, and a shard is the least that is computed in one
        if by_shard(case.model) or case.precision == "bf16":
            losses = train_on_shards(parts, ([data.train.batch(own) for own in batch.split(case.micro)] for batch in batches), case.seed)
        else:
            losses = train_on_batches(parts, (data.train.batch(batch) for batch in batches))
        found = list(losses)
        return Plain(state_of(model, chosen), found, evaluate(parts, data.test.batch(torch.arange(len(data.test)))))


@torch.no_grad()
def nudge(model: nn.Module, *, size: float, generator: torch.Generator) -> None:
    """Round the gradients another way."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None and not parameter.grad.is_sparse]
    largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    for gradient in gradients:
        gradient += size * largest * (2 * torch.rand(gradient.shape, generator=generator, dtype=gradient.dtype) - 1)


def _left_by(member: ranks.Worker) -> State:
    parts = member.trainer._parts
    return state_of(parts.model, parts.state.optimizer)


def _compare_losses(group: ranks.Group, wanted: Plain, case: Case) -> None:
    tolerance = LOSSES[case.precision]
    found = [(f"step {record.step}", record.loss, wanted.losses[record.step - 1]) for each in group.everybody for record in each.records]
    found += [("the held-out samples", each.evaluations[case.steps], wanted.held_out) for each in group.members]
    for what, loss, plain_loss in found:
        if not abs(loss - plain_loss) <= tolerance * max(1.0, abs(plain_loss)):
            raise Difference(f"the loss of {what}: {loss}, in the plain loop {plain_loss}")


def _compare_names(member: ranks.Worker, state: State) -> None:
    """What a checkpoint keeps under a parameter's name is that parameter's."""
    for full, saved in member.trainer._parts.state.tensors().items():
        kind, _, name = full.partition(".")
        parameter, _, key = name.rpartition(".")
        kept = state.tensors.get(f"optimizer's {key} of {parameter}") if kind == "optimizer" else None
        if kept is not None and not torch.equal(saved, kept):
            raise Difference(f"a checkpoint has under {full} what is not the {key} of {parameter}")
