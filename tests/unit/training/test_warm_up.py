from __future__ import annotations

import pytest
import torch

from launcher.training.warm_up import WarmUp
from tests.unit.training.small_jobs import Recorder, job, trainer

pytestmark = pytest.mark.unit
BATCHES = {"workers": "1..2"}  # four shards in a forward pass
VERDICTS = [
    ("WithNorm", True, "same as one at a time"),
    ("WithDropout", True, "same as one at a time"),
    ("WithOwnBuffers", True, "same as one at a time"),
    ("FunctionalDropout", False, "bernoulli"),
    ("MixesSamples", False, "losses would differ"),
]


def verdict(model: str, **groups: object) -> WarmUp:
    return trainer(job(model, **groups), Recorder()).warm_up()


@pytest.mark.parametrize(("model", "fused", "reason"), VERDICTS)
def test_shards_share_a_forward_pass_where_that_changes_nothing(model: str, fused: bool, reason: str) -> None:
    found = verdict(model, **BATCHES)
    assert found.fused is fused
    assert reason in found.reason


def test_the_configuration_has_the_last_word() -> None:
    assert verdict("MixesSamples", trainer={"fuse": "on"}) == WarmUp(True, "several shards in one forward pass: trainer.fuse=on")
    assert verdict("WithNorm", trainer={"fuse": "off"}) == WarmUp(False, "one shard at a time: trainer.fuse=off")
    assert not verdict("WithNorm", workers=8).fused


@pytest.mark.parametrize("model", ["WithNorm", "WithDropout", "WithOwnBuffers"])
def test_the_trial_leaves_no_trace(model: str) -> None:
    made = trainer(job(model), Recorder())
    before = {name: value.clone() for name, value in made._parts.model.state_dict().items()}
    made.warm_up()
    after = made._parts.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in made._parts.model.parameters())
    assert made.progress > 0
