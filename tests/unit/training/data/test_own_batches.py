"""Jobs whose data set makes batches itself: mappings, of a length that differs from shard to shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.config.schema import JobConfig
from launcher.core.errors import UserCodeError
from launcher.training.tasks import WeightedSum, over_samples
from launcher.training.trainer import RunOutcome
from tests.support.data_sets import HERE as DATA_SETS
from tests.unit.training.small_jobs import Recorder, alone, job, trainer

pytestmark = pytest.mark.unit
HERE = "tests.unit.training.data.test_own_batches"


class MeanOfText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, text: Tensor, label: Tensor) -> Tensor:
        there = text >= 0
        scores: Tensor = self.last(torch.stack([(text * there).sum(1) / 100, there.sum(1).float()], 1))
        return scores


class OfMappings:
    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return batch["text"], batch["label"]

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> WeightedSum:
        return over_samples(functional.cross_entropy(outputs, batch["label"], reduction="none"))

    def metrics(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict[str, WeightedSum]:
        return {"length": over_samples((batch["text"] >= 0).sum(1).float())}

    def check(self, outputs: Tensor, batch: dict[str, Tensor]) -> None: ...


def texts(**trainer_keys: Any) -> JobConfig:
    return job(
        {"_target_": f"{HERE}.MeanOfText"},
        data={"_target_": f"{DATA_SETS}.Data", "kind": "OfManyLengths"},
        task={"_target_": f"{HERE}.OfMappings"},
        trainer=trainer_keys,
    )


def test_each_shard_has_a_forward_pass_of_its_own() -> None:
    made = trainer(texts(), recorder := Recorder())
    warm_up = made.warm_up()
    assert not warm_up.fused
    assert "collate_fn" in warm_up.reason
    assert made.run(alone()) is RunOutcome.FINISHED
    lengths = [1 + index % 7 for index in range(13)]
    [(_, metrics)] = recorder.evaluations
    assert metrics["length"] == pytest.approx(sum(lengths) / len(lengths))


def test_shards_that_do_not_fit_into_one_pass_are_explained_where_one_is_asked_for() -> None:
    with pytest.raises(UserCodeError, match="cannot be put together") as caught:
        trainer(texts(fuse="on", micro_batch_size=2), Recorder()).run(alone())
    assert "trainer.fuse=off" in caught.value.next
