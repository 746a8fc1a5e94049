"""Models that people have, of which each tripped up the trial or the step once: taken as a plain loop takes them, or refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError
from launcher.training.trainer import RunOutcome, Trainer
from tests.unit.training.small_jobs import CLASSES, Recorder, alone, job, trainer
from tests.unit.training.user_models import Flat

pytestmark = pytest.mark.unit
HERE = "tests.unit.training.test_ordinary_models"


class KeepsAScalarTensor(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.array = torch.tensor(0.5), np.array(0.5)
        self.aux_loss: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x) * self.scale
        self.aux_loss = scores.detach().mean()
        return scores


class Masked(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(8))
        self.register_buffer("wide", torch.ones(1, 8).expand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x.squeeze(1) + 0.0 * torch.exp(self.mask) * self.wide).double())


class RunningMaximum(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.full((64,), -torch.inf, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.top = torch.maximum(self.top, x.detach().flatten(1).amax(0))
        return super().forward(x)


class GrowingCache(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.cache):
            self.cache = torch.zeros(len(x))
        return super().forward(x) + self.cache[: len(x), None]


class CoolsDown(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature = max(self.temperature * np.exp(-0.1), 0.5)
        return super().forward(x) / self.temperature


class LearnsFromSomeOnly(Flat):
    """A shard that has nothing to learn from has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)
        self.last.requires_grad_(False)
        self.rare = nn.Linear(64, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores + self.rare(x.flatten(1)) if not self.training or x.flatten(1)[0, 0] > 0.5 else scores


class CountsAlways(Flat):
    """Also in evaluation, where every rank sees other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("level", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.level += 1.0
        return super().forward(x)


class DropsInPlace(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.999, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x.flatten(1))) + 1.0
        self.drop(hidden)
        assert not self.training or (hidden == 0).double().mean() > 0.9
        return self.last(hidden)


class Attends(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True).double()

    def forward(self, x: Tensor) -> Tensor:
        seen, _ = self.attention(*[x.squeeze(1)] * 3, need_weights=False)
        return super().forward(seen)


class WritesAParameter(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.last.bias.mul_(0.9)
        return super().forward(x)


class Complex(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class BalancesItsLoad(Flat):
    """A term over the samples of a pass, small beside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        load = self.gate(x.flatten(1)).softmax(1).mean(0)
        return super().forward(x) + 1e-3 * (load * load).sum() * torch.arange(3)


def trained(model: str, **groups: Any) -> Trainer:
    config = job({"_target_": f"{HERE}.{model}"}, data={"double": True}, **{"workers": "1..2", "checkpoint": {"every_steps": 3}, **groups})
    made = trainer(config, recorder := Recorder())
    made.warm_up()
    assert made.run(alone()) is RunOutcome.FINISHED
    assert recorder.failures == []
    return made


@pytest.mark.parametrize(
    "model", ["KeepsAScalarTensor", "Masked", "GrowingCache", "CoolsDown", "LearnsFromSomeOnly", "DropsInPlace", "Attends", "CountsAlways"]
)
def test_it_trains(model: str) -> None:
    trained(model)


def test_attention_without_dropout_may_share_a_pass() -> None:
    assert trained("Attends").warm_up().fused


def test_a_small_term_over_the_samples_of_a_pass_is_noticed() -> None:
    assert not trained("BalancesItsLoad").warm_up().fused


def test_a_buffer_may_begin_at_infinity() -> None:
    assert torch.isfinite(trained("RunningMaximum")._parts.model.top).all()


def test_an_evaluation_leaves_buffers_and_numbers_as_they_were() -> None:
    often, never = (trained("CountsAlways", trainer={"eval_every_steps": every})._parts.model for every in (1, None))
    assert often.calls == never.calls == 6
    assert torch.equal(often.level, never.level)


@pytest.mark.parametrize(("model", "said"), [("WritesAParameter", "changed in forward"), ("Complex", "complex")])
def test_it_is_refused_in_words(model: str, said: str) -> None:
    with pytest.raises(UserCodeError, match=said):
        trained(model)
