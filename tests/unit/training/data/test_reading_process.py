"""What a reading process answers: batches in one piece of memory, or what was raised, as far as it can be pickled."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from launcher.core.errors import ForeignTraceback, UserCodeError
from launcher.training.data.batches import tensors_of
from launcher.training.data.reading_process import Failure, Message
from launcher.training.data.samples import Samples
from tests.support.data_sets import Rows, Torn, TornInTwoParts

pytestmark = pytest.mark.unit


def test_batches_of_any_nest_come_back_from_one_piece_of_memory() -> None:
    first = (torch.arange(6).view(3, 2).T, {"half": torch.rand(2).bfloat16(), "none": torch.empty(2, 0)})
    second = [torch.tensor([True, False, True])]
    message = Message.of([first, second])
    one, two = message.batches()
    assert isinstance(one[1], dict)
    for batch, wanted in ((one, first), (two, second)):
        for a, b in zip(tensors_of(batch), tensors_of(wanted), strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
            assert a.untyped_storage().data_ptr() == message.memory.untyped_storage().data_ptr()
    assert message.memory.is_shared()


def failure_of(split: Rows) -> Failure:
    try:
        Samples(split, where="data.train", device="cpu", seed=0).read(np.arange(9))
    except Exception as error:  # noqa: BLE001 - as a reading process does
        failure: Failure = pickle.loads(pickle.dumps(Failure.of(error)))
        return failure
    raise AssertionError("it fails at sample 7")


def test_an_error_comes_over_with_the_part_of_its_traceback_that_is_not_ours() -> None:
    with pytest.raises(ValueError, match="record 7 is torn") as caught:
        failure_of(Torn(9)).reraise()
    assert isinstance(caught.value.__cause__, ForeignTraceback)
    trace = str(caught.value.__cause__)
    assert trace.splitlines()[1].endswith("in failure_of")
    assert "data_sets.py" in trace
    assert trace.endswith("ValueError: record 7 is torn\n")


def test_an_error_that_cannot_be_pickled_comes_over_as_its_words() -> None:
    with pytest.raises(RuntimeError, match="TwoPartError: record 7: torn"):
        failure_of(TornInTwoParts(9)).reraise()


def test_an_error_of_ours_stays_as_it_is() -> None:
    class Text(Rows):
        def __getitem__(self, index: int) -> str:
            return "text"

    with pytest.raises(UserCodeError, match="no tensor") as caught:
        failure_of(Text(9)).reraise()
    assert caught.value.where == "data.train"
