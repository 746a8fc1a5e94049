"""BatchNorm over one value is explained by the key that makes it so."""

from __future__ import annotations

import pytest

from launcher.config.schema import TrainerConfig
from launcher.core.errors import UserCodeError
from launcher.training.single_values import single_values_explained
from tests.unit.training.small_jobs import Recorder, job, trainer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("fuse", ["auto", "on", "off"])
def test_micro_batches_of_one_sample_under_batch_norm_name_the_key(fuse: str) -> None:
    made = trainer(job("WithNorm", trainer={"micro_batch_size": 1, "fuse": fuse}), Recorder())
    with pytest.raises(UserCodeError, match="single value") as caught:
        made.warm_up()
    assert caught.value.where == "trainer.micro_batch_size"
    assert caught.value.given.startswith("1; torch: Expected more than 1 value per channel")
    assert "global_batch_size=32" in caught.value.expected


def test_micro_batches_of_one_sample_are_fine_without_it() -> None:
    assert trainer(job("Plain", trainer={"micro_batch_size": 1}), Recorder()).warm_up() is not None


def test_another_error_comes_out_unchanged() -> None:
    with pytest.raises(ValueError, match="mine"), single_values_explained(TrainerConfig(steps=1)):
        raise ValueError("mine")
