from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.core.errors import UserCodeError
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


USERS = "tests.unit.training.user_models"


def trial_of(model: str, **settings: object) -> Any:
    made = trainer(job({"_target_": f"{USERS}.{model}", **settings}, data={"double": True}), Recorder())
    made.warm_up()
    return made


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ListKeeper", "history"),
        ("OwnGenerator", "other losses"),
        ("RecomputesFromABuffer", "with and without it: other gradients"),
    ],
)
def test_a_model_that_would_train_otherwise_than_in_a_plain_loop_is_refused(model: str, said: str) -> None:
    with pytest.raises(UserCodeError) as caught:
        trial_of(model)
    assert said in caught.value.given


def test_what_a_model_keeps_and_does_is_found() -> None:
    made = trial_of("Remembers")
    assert "model.level" in made._parts.state.tensors()
    assert made._parts.state.document(0).attributes == {"calls": 0}
    assert not made._parts.objective.changes_inputs
    assert trial_of("ChangesItsInput")._parts.objective.changes_inputs
    assert sorted(trial_of("SharesRecomputed")._parts.state.document(0).repeated) == ["middle.bias", "middle.weight"]
    assert trial_of("SharesRecomputed", reentrant=False)._parts.state.repeated == []
    drawing = trial_of("DrawsElsewhere")
    assert "of Python or NumPy" in drawing.warm_up().reason


def test_an_attribute_that_forward_makes_is_not_there_before() -> None:
    made = trial_of("Thaws")
    assert not hasattr(made._parts.model, "calls")
    assert made._parts.state.document(0).attributes == {"calls": None}
    assert [parameter.requires_grad for parameter in made._parts.model.parameters()] == [False, False, True, True]


def test_recomputed_layers_may_share_a_forward_pass() -> None:
    for again in ("reentrant", "other"):
        assert trial_of("Recomputed", again=again).warm_up().fused
