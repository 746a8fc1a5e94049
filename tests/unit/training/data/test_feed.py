"""What a rank asks processes for, in which order, and what of it stays when the group changes. The processes are played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from launcher.training.data.batches import tensors_of
from launcher.training.data.data_order import DataOrder
from launcher.training.data.feed import TrainingFeed, evaluation_batches
from launcher.training.data.reading_process import Group
from launcher.training.data.samples import Samples, read_forward
from launcher.training.shards.batch import BatchPlan
from tests.support.data_sets import DrawingTogether, OfManyLengths, Rows
from tests.unit.training.small_jobs import FastSplit

pytestmark = pytest.mark.unit
PLAN = BatchPlan(global_batch_size=24, micro_batch_size=3, width=2)
SIZE = 100


class PlayedReading:
    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.begun = self.done = self.taken_back = False

    def cancel(self) -> bool:
        self.taken_back = self.taken_back or not self.begun
        return self.taken_back

    def abandon(self) -> None:
        self.taken_back = True


class Played:
    """Reads as processes do; whoever waits gets what it waits for."""

    def __init__(self, samples: Samples, count: int = 3) -> None:
        self.count = count
        self.samples = samples
        self.asked: list[PlayedReading] = []

    def read(self, split: str, groups: Sequence[Group]) -> Any:
        reading = PlayedReading(groups)

        def batches() -> list[Any]:
            assert not reading.taken_back
            reading.begun = reading.done = True
            return [self.samples.read(*group) for group in groups]

        reading.batches = batches  # type: ignore[attr-defined]
        self.asked.append(reading)
        return reading

    def do(self, count: int, *, begin: int = 0) -> None:
        """Read what was asked for first, and begin to read so many more."""
        for number, reading in enumerate(self.asked[: count + begin]):
            reading.begun, reading.done = True, number < count

    def indices(self, first: int = 0) -> list[int]:
        """Of all samples asked for, in the order in which they were, but for what was taken back."""
        kept = [reading for reading in self.asked[first:] if not reading.taken_back]
        return [int(index) for reading in kept for indices, _ in reading.groups for index in indices]


def make(split: Any, *, end: int = 50, count: int = 3) -> tuple[TrainingFeed, Played, Samples, DataOrder]:
    samples = Samples(split, where="data.train", device="cpu", seed=4)
    order, played = DataOrder(size=len(split), seed=4), Played(samples, count)
    return TrainingFeed(samples, order, PLAN, end=end, processes=played), played, samples, order  # type: ignore[arg-type]


def assert_same(first: Any, second: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(second), strict=True))


def elements(order: DataOrder, step: int, shards: range) -> list[int]:
    return order.samples(step * 24 + shards.start * 3, len(shards) * 3).tolist()


def test_samples_are_asked_for_in_the_order_in_which_steps_want_them() -> None:
    feed, played, _, order = make(Rows(SIZE))
    feed.begin(PLAN.forwards(2, 1))
    feed.step(7)
    assert played.indices() == [index for step in (7, 8, 9) for index in elements(order, step, range(4, 8))]
    asked = len(played.asked)
    feed.step(8)
    assert played.indices(asked) == elements(order, 10, range(4, 8))


def test_all_processes_have_two_pieces_however_few_samples_a_step_has() -> None:
    feed, played, _, _ = make(DrawingTogether(SIZE), count=5)
    feed.begin(PLAN.forwards(8, 0))
    feed.step(0)
    assert len(played.asked) >= 2 * 5


@pytest.mark.parametrize("count", [1, 3, 30])
def test_nothing_is_read_for_steps_after_the_last(count: int) -> None:
    feed, played, _, _ = make(Rows(SIZE), end=4, count=count)
    feed.begin(PLAN.forwards(2, 0))
    for step in range(1, 4):
        list(feed.step(step))
    assert len(played.indices()) == 3 * 12


@pytest.mark.parametrize("split", [Rows(SIZE), DrawingTogether(SIZE), FastSplit(SIZE, 1)], ids=lambda split: type(split).__name__)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_in_every_generation_and_from_any_step_the_batches_are_those_that_are_read_on_the_spot(split: Any, count: int) -> None:
    feed, _, samples, order = make(split, count=count)
    for world_size, rank, steps in ((2, 0, (0, 1)), (1, 0, (1, 2)), (3, 2, (3, 4)), (8, 7, (4, 30)), (1, 0, (30, 31)), (2, 1, (20,))):
        feed.begin(PLAN.forwards(world_size, rank))
        for step in steps:
            batches = list(feed.step(step))
            assert len(batches) == len(feed.forwards)
            for batch, shards in zip(batches, feed.forwards, strict=True):
                assert_same(batch, read_forward(samples, order, PLAN, step, shards))


def test_at_a_change_what_was_read_and_still_fits_is_kept() -> None:
    """Step 0 of rank 0 of 2 is read, and half of step 1. Then it is alone: it reads the rest of both, in their order."""
    feed, played, samples, order = make(Rows(SIZE), count=2)
    feed.begin(PLAN.forwards(2, 0))
    feed.step(0)
    played.do(6)
    asked = len(played.asked)
    feed.begin(PLAN.forwards(1, 0))
    step = feed.step(0)
    assert played.indices(asked) == [
        *elements(order, 0, range(4, 8)),
        *elements(order, 1, range(2, 8)),
        *elements(order, 2, range(8)),
    ]
    for batch, shards in zip(step, feed.forwards, strict=True):
        assert_same(batch, read_forward(samples, order, PLAN, 0, shards))


def test_at_a_change_what_is_being_read_for_later_steps_makes_room_for_the_next() -> None:
    feed, played, _, order = make(Rows(SIZE), count=2)
    feed.begin(PLAN.forwards(2, 0))
    feed.step(0)
    played.do(0, begin=12)
    asked = len(played.asked)
    feed.begin(PLAN.forwards(1, 0))
    feed.step(1)
    assert [reading.taken_back for reading in played.asked[:asked]] == [False] * 8 + [True] * 4
    later = [index for step in (2, 3) for index in elements(order, step, range(8))]
    assert played.indices(asked) == [*elements(order, 1, range(4, 8)), *later]


def test_at_a_change_what_does_not_fit_is_taken_back_even_if_it_is_begun() -> None:
    feed, played, _, _ = make(Rows(SIZE))
    feed.begin(PLAN.forwards(2, 0))
    feed.step(0)
    played.do(3)
    feed.begin(PLAN.forwards(2, 1))
    assert all(reading.taken_back for reading in played.asked)


def test_a_step_that_is_taken_again_is_not_read_again_and_not_changed_by_who_wrote_into_its_batch() -> None:
    feed, played, samples, order = make(Rows(SIZE))
    feed.begin(PLAN.forwards(2, 0))
    for batch in feed.step(0):
        batch[0].zero_()
    asked = len(played.asked)
    feed.begin(PLAN.forwards(2, 0))
    again = list(feed.step(0))
    assert not set(played.indices(asked)) & set(elements(order, 0, range(4)))
    for batch, shards in zip(again, feed.forwards, strict=True):
        assert_same(batch, read_forward(samples, order, PLAN, 0, shards))


@pytest.mark.parametrize(("split", "ahead"), [(Rows(23), 18), (OfManyLengths(23), 23)])
def test_an_evaluation_reads_its_chunks_ahead_and_in_their_order(split: Any, ahead: int) -> None:
    samples = Samples(split, where="data.test", device="cpu", seed=4)
    played = Played(samples)
    chunks = [range(start, min(start + 6, 23)) for start in range(0, 23, 6)]
    batches = evaluation_batches(samples, chunks, played)  # type: ignore[arg-type]
    first = next(batches)
    assert played.indices() == list(range(ahead))
    for batch, wanted in zip([first, *batches], evaluation_batches(samples, chunks, None), strict=True):
        assert_same(batch, wanted)
    assert played.indices() == list(range(23))


def test_an_evaluation_that_is_left_takes_back_what_it_asked_for() -> None:
    samples = Samples(Rows(60), where="data.test", device="cpu", seed=4)
    played = Played(samples)
    batches = evaluation_batches(samples, [range(start, start + 6) for start in range(0, 60, 6)], played)  # type: ignore[arg-type]
    next(batches)
    batches.close()
    assert len(played.indices()) == 6
