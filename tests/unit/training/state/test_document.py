"""What a state holds besides tensors, on its way through JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch

from launcher.config.schema import Component
from launcher.core.errors import CheckpointCorrupt, UserCodeError
from launcher.training.state.document import (
    GroupDocument,
    OptimizerDocument,
    SchedulerDocument,
    StateDocument,
    chosen,
    through_json,
    with_tuples,
    with_types_of,
)

pytestmark = pytest.mark.unit
DOCUMENT = StateDocument(
    7,
    OptimizerDocument(
        chosen(Component(target="torch.optim.SGD", params={"betas": (0.9, 0.99)})),
        {"0.weight": {"step": 7}},
        [GroupDocument(["0.weight"], {"lr": 0.1})],
    ),
    SchedulerDocument(Component(target="cosine", params={}), {"best": math.inf, "milestones": [1, 2]}),
    ["0.weight"],
    ["0.level"],
    [],
    {"calls": 3, "0.level": 0.5, "0.on": True, "0.later": None},
)


def test_it_is_read_back_as_it_was_written() -> None:
    assert StateDocument.from_json(json.loads(json.dumps(DOCUMENT.to_json()))) == DOCUMENT
    assert [*DOCUMENT.to_json()] == ["step", "optimizer", "scheduler", "trained", "buffers", "repeated", "attributes"]


@pytest.mark.parametrize(
    "change", [{"step": "seven"}, {"optimizer": None}, {"optimizer": {"choice": {"target": "a", "params": {}}}}, {"scheduler": [1]}]
)
def test_one_that_lacks_something_is_a_damaged_checkpoint(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointCorrupt, match="damaged"):
        StateDocument.from_json({**DOCUMENT.to_json(), **change})


def test_types_that_json_does_not_know_come_back() -> None:
    present = {"milestones": Counter({4: 2}), "pair": (1, 2), "names": ["a"]}
    saved = through_json({"milestones": Counter({4: 1}), "pair": (3, 4), "names": ["b", "c"]}, "scheduler")
    assert saved == {"milestones": {"4": 1}, "pair": [3, 4], "names": ["b", "c"]}
    assert with_types_of(present, saved) == {"milestones": Counter({4: 1}), "pair": (3, 4), "names": ["b", "c"]}
    assert with_tuples({"betas": [0.9, 0.99], "lr": 0.1}) == {"betas": (0.9, 0.99), "lr": 0.1}


def test_a_tensor_of_one_number_is_that_number_and_a_larger_one_is_refused() -> None:
    assert through_json({"lr": torch.tensor(0.5)}, "optimizer") == {"lr": 0.5}
    with pytest.raises(UserCodeError) as caught:
        through_json({"lr": torch.zeros(2)}, "optimizer")
    assert caught.value.where == "optimizer"
