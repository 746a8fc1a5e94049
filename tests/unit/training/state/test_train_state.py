"""What is taken over from another's state: bit for bit, without copies where there need be none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedules

from launcher.config.schema import Component
from launcher.core.errors import ConfigError, UserCodeError
from launcher.training.shards.tracked_attributes import AttributeName
from launcher.training.state.document import StateDocument
from launcher.training.state.train_state import TrainState

pytestmark = pytest.mark.unit

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "cosine": lambda optimizer: schedules.CosineAnnealingLR(optimizer, T_max=9),
    "at milestones": lambda optimizer: schedules.MultiStepLR(optimizer, [1, 4, 4, 6], gamma=0.5),
    "one cycle": lambda optimizer: schedules.OneCycleLR(optimizer, max_lr=0.2, total_steps=12),
    "one after another": lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, total_iters=2), schedules.MultiStepLR(optimizer, [2, 3], gamma=0.5)], milestones=[2]
    ),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: Adam(parameters, lr=0.1),
    "AdamW": lambda parameters: AdamW(parameters, lr=0.1),
}


def made(optimizer: str = "SGD", schedule: str | None = None, *, dtype: torch.dtype = torch.float32) -> TrainState:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    chosen = OPTIMIZERS[optimizer](model.parameters())
    scheduler = None if schedule is None else SCHEDULES[schedule](chosen)
    choice = None if schedule is None else Component(target=schedule, params={})
    return TrainState(model, chosen, scheduler, Component(target=optimizer, params={}), choice)


def train(state: TrainState, steps: range) -> None:
    for step in steps:
        state.optimizer.zero_grad()
        numbers = torch.Generator().manual_seed(step)
        parameter = next(state.model.parameters())
        state.model(torch.randn(5, 3, generator=numbers).to(parameter.dtype)).sigmoid().mean().backward()
        state.optimizer.step()
        if state.scheduler is not None:
            state.scheduler.step()


def same(one: TrainState, other: TrainState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_who_takes_a_state_over_continues_as_its_giver(optimizer: str, schedule: str | None) -> None:
    giver, taker = made(optimizer, schedule), made(optimizer, schedule)
    train(giver, range(3))
    document = StateDocument.from_json(json.loads(json.dumps(giver.document(3).to_json())))
    taker.load(copy.deepcopy(giver.tensors()), document)
    assert document == giver.document(3)
    assert same(giver, taker)
    for state in (giver, taker):
        train(state, range(3, 9))
    assert same(giver, taker)
    assert [group["lr"] for group in giver.optimizer.param_groups] == [group["lr"] for group in taker.optimizer.param_groups]


def test_what_is_in_place_already_is_not_copied() -> None:
    giver, taker = made("Adam"), made("Adam")
    train(giver, range(2))
    given = copy.deepcopy(giver.tensors())
    own = {name: value for name, value in taker.tensors().items() if name.startswith("model.")}
    for name, value in own.items():
        value.copy_(given[name])
    before = {name: value._version for name, value in own.items()}
    taker.load(given | own, giver.document(2))
    after = taker.tensors()
    assert {name: after[name]._version for name in own} == before
    assert {name: value.data_ptr() for name, value in after.items()} == {name: value.data_ptr() for name, value in (given | own).items()}
    assert same(giver, taker)


class KeepsMore(SGD):
    """Sums in fp32 whatever the parameter's type, a count and a mask."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # nothing to return
        for group in self.param_groups:
            for parameter in group["params"]:
                kept = self.state[parameter]
                if not kept:
                    kept |= {
                        "sum": torch.zeros_like(parameter, dtype=torch.float32),
                        "count": torch.tensor(0),
                        "mask": torch.tensor([True]),
                    }
                kept["sum"] += parameter.grad.float() / 3
                kept["count"] += 2**53 + 1


OPTIMIZERS["KeepsMore"] = lambda parameters: KeepsMore(parameters, lr=0.1)


def test_what_an_optimizer_keeps_has_its_own_type() -> None:
    giver, taker = made("KeepsMore", dtype=torch.bfloat16), made("KeepsMore", dtype=torch.bfloat16)
    train(giver, range(2))
    taker.load(giver.tensors(), giver.document(2))
    kept = taker.optimizer.state[next(taker.model.parameters())]
    assert [kept[key].dtype for key in ("sum", "count", "mask")] == [torch.float32, torch.int64, torch.bool]
    assert same(giver, taker)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "KeepsMore"])
def test_memory_for_the_optimizer_is_prepared_without_a_trace(optimizer: str) -> None:
    giver, taker = made(optimizer, "at milestones"), made(optimizer, "at milestones")
    before: dict[str, Tensor] = copy.deepcopy(taker.tensors())
    document = taker.document(0)
    taker.prepare_to_receive()
    train(giver, range(1))
    wanted = {name: (value.shape, value.dtype, value.stride()) for name, value in giver.tensors().items() if name.startswith("optimizer.")}
    assert {name: (value.shape, value.dtype, value.stride()) for name, value in taker.prepared.items()} == wanted
    assert all(torch.equal(value, before[name]) for name, value in taker.tensors().items())
    assert taker.tensors().keys() == before.keys()
    assert (taker.document(0), [parameter.grad for parameter in taker.model.parameters()]) == (document, [None] * 6)


def test_a_state_of_another_optimizer_changes_nothing() -> None:
    giver, taker = made("Adam"), made("SGD")
    train(giver, range(2))
    train(taker, range(1))
    before = copy.deepcopy(taker.tensors())
    with pytest.raises(ConfigError):
        taker.load(giver.tensors(), giver.document(2))
    assert all(torch.equal(value, before[name]) for name, value in taker.tensors().items())


class Remembers(nn.Module):
    """A buffer that is not persistent and a count, both changed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("level", torch.zeros(2), persistent=False)
        self.register_buffer("constant", torch.arange(3), persistent=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def split(parameters: list[nn.Parameter]) -> Optimizer:
    """Two groups, in another order than the model's."""
    matrices, others = [item for item in parameters if item.dim() == 2], [item for item in parameters if item.dim() < 2]
    return AdamW([{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}], lr=0.05)


def remembering(optimizer: Callable[[list[nn.Parameter]], Optimizer], choice: str = "split") -> TrainState:
    model = Remembers()
    state = TrainState(model, optimizer(list(model.parameters())), None, Component(target="made", params={"groups": choice}), None)
    state.track(["level"], [AttributeName("", "calls")], [])
    return state


def test_what_is_kept_of_a_parameter_is_under_its_name_whatever_its_group() -> None:
    giver = remembering(split)
    train(giver, range(3))
    for parameter, name in [(item, name) for name, item in giver.model.named_parameters()]:
        assert torch.equal(giver.tensors()[f"optimizer.{name}.exp_avg"], giver.optimizer.state[parameter]["exp_avg"])
    together = remembering(lambda parameters: AdamW(parameters, lr=0.05, weight_decay=0.1), "together")
    together.load(copy.deepcopy(giver.tensors()), giver.document(3))
    assert same(giver, together)
    assert [group["weight_decay"] for group in together.optimizer.param_groups] == [0.1], "what the configuration says now"


def test_groups_in_another_order_get_their_own_hyper_parameters() -> None:
    giver, taker = remembering(split), remembering(lambda parameters: split(parameters))
    giver.optimizer.param_groups[0]["lr"] = 0.5
    taker.optimizer.param_groups.reverse()
    train(giver, range(1))
    taker.load(copy.deepcopy(giver.tensors()), giver.document(1))
    assert [(group["lr"], group["weight_decay"]) for group in taker.optimizer.param_groups] == [(0.05, 0.1), (0.5, 0.0)]
    assert same(giver, taker)


def test_buffers_and_numbers_that_change_and_what_is_frozen_are_state() -> None:
    giver, taker = remembering(split), remembering(split)
    train(giver, range(2))
    giver.model.level += 3.0
    giver.model.calls = 7
    giver.model.first.requires_grad_(False)
    document = StateDocument.from_json(json.loads(json.dumps(giver.document(2).to_json())))
    assert "model.constant" not in giver.tensors()
    taker.load(copy.deepcopy(giver.tensors()), document)
    assert taker.model.level.tolist() == [3.0, 3.0]
    assert taker.model.calls == 7
    assert [parameter.requires_grad for parameter in taker.model.parameters()] == [False, False, True, True]


def test_memory_is_not_prepared_for_what_is_frozen() -> None:
    state = remembering(split)
    state.model.first.requires_grad_(False)
    state.prepare_to_receive()
    assert {name.split(".")[1] for name in state.prepared} == {"last"}


def test_an_optimizer_over_other_parameters_and_state_that_is_no_tensor_are_refused() -> None:
    with pytest.raises(UserCodeError, match="none of the model's"):
        remembering(lambda parameters: SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: object) -> None: ...

    model = Extra(2, 2)
    with pytest.raises(UserCodeError, match="no tensor"):
        TrainState(model, SGD(model.parameters(), lr=0.1), None, Component(target="SGD", params={}), None)
