from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from launcher.core.errors import BackendUnavailable, UserCodeError
from launcher.training.data.data_order import DataOrder
from launcher.training.data.samples import Samples, TrainingFeed, read_forward
from launcher.training.device import choose_device
from launcher.training.shards.batch import BatchPlan
from launcher.training.tasks import Classification
from tests.unit.training.small_jobs import AugmentedSplit, FastSplit, Split, job

pytestmark = pytest.mark.unit
PLAN = BatchPlan(global_batch_size=12, micro_batch_size=3, width=2)


@pytest.mark.parametrize("kind", [Split, FastSplit])
def test_a_fused_batch_interleaves_its_shards(kind: type[Split]) -> None:
    split = kind(20, 1)
    order = DataOrder(size=20, seed=4)
    images, labels = read_forward(Samples(split, where="data.train", device="cpu"), order, PLAN, 3, range(2, 4))
    first, second = order.samples(3 * 12 + 6, 3), order.samples(3 * 12 + 9, 3)
    rows = np.stack([first, second], 1).flatten()
    assert torch.equal(images, split.images[rows])
    assert torch.equal(labels, split.labels[rows])


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    samples = Samples(AugmentedSplit(12, 1), where="data.train", device="cpu")
    seen = {}
    for seed in (0, 1):
        order = DataOrder(size=12, seed=seed)
        for step in range(2):
            for width in (1, 2):
                for first in range(0, 4, width):
                    shards = range(first, first + width)
                    images, _ = read_forward(samples, order, PLAN, step, shards)
                    indices = order.samples(step * 12 + first * 3, width * 3).reshape(width, 3).T.flatten()
                    for index, image in zip(indices, images, strict=True):
                        key = (seed, step, int(index))  # a step is an epoch here
                        assert torch.equal(seen.setdefault(key, image), image)
    assert len(seen) == 48
    assert len({image.numpy().tobytes() for image in seen.values()}) == 48


def test_reading_ahead_stops_at_the_end() -> None:
    reads: list[int] = []

    class Counted(Split):
        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    samples, order = Samples(Counted(20, 1), where="data.train", device="cpu"), DataOrder(size=20, seed=4)
    feed = TrainingFeed(samples, order, PLAN, end=4)
    feed.begin(PLAN.forwards(2, 0))
    for step in range(1, 4):
        batches = list(feed.step(step))
        assert torch.equal(batches[0][0], read_forward(samples, order, PLAN, step, range(2))[0])
    assert len(reads) == 2 * 3 * 6


@pytest.mark.parametrize("kind", [Split, FastSplit])
def test_in_another_generation_the_feed_gives_that_ranks_share_from_any_step(kind: type[Split]) -> None:
    samples, order = Samples(kind(20, 1), where="data.train", device="cpu"), DataOrder(size=20, seed=4)
    feed = TrainingFeed(samples, order, PLAN, end=100)
    for world_size, rank, steps in ((2, 0, (0, 1)), (1, 0, (1, 2)), (3, 2, (7, 8))):
        forwards = PLAN.forwards(world_size, rank)
        feed.begin(forwards)
        for step in steps:
            batches = list(feed.step(step))
            assert len(batches) == len(forwards)
            for (images, labels), shards in zip(batches, forwards, strict=True):
                wanted_images, wanted_labels = read_forward(samples, order, PLAN, step, shards)
                assert torch.equal(images, wanted_images)
                assert torch.equal(labels, wanted_labels)


def test_the_threads_that_read_ahead_stay_from_one_generation_to_the_next() -> None:
    feed = TrainingFeed(Samples(Split(20, 1), where="data.train", device="cpu"), DataOrder(size=20, seed=4), PLAN, end=100)
    readers = feed._readers
    feed.begin(PLAN.forwards(2, 0))
    list(feed.step(0))
    feed.begin(PLAN.forwards(2, 1))
    list(feed.step(0))
    assert readers is not None
    assert feed._readers is readers


class NotTensors(Split):
    def __getitem__(self, index: int) -> Any:
        return self.images[index], int(self.labels[index])


class TooFew(FastSplit):
    def batch(self, indices: torch.Tensor) -> Any:
        return super().batch(indices[1:])


@pytest.mark.parametrize(
    ("split", "what"), [(NotTensors(5, 1), "not a tuple of tensors"), (TooFew(5, 1), "another number"), (object(), "by index")]
)
def test_samples_that_cannot_be_used_are_explained(split: Any, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        Samples(split, where="data.train", device="cpu").read(np.arange(3))
    assert caught.value.where == "data.train"


def test_classification_has_sums_and_what_counts() -> None:
    task = Classification()
    batch = (torch.zeros(4, 2), torch.tensor([0, 1, 2, 2]))
    scores = torch.eye(3)[[0, 1, 0, 2]] * 10
    assert task.inputs(batch) == (batch[0],)
    assert task.loss(scores.bfloat16(), batch).total.dtype == torch.float32
    assert task.loss(scores, batch).weight == 4
    assert task.metrics(scores, batch)["accuracy"] == (3, 4)
    task.check(scores, batch)
    for outputs, labels in [(scores[:, :2], batch[1]), (scores[0], batch[1]), (scores, batch[1].float()), ("text", batch[1])]:
        with pytest.raises(UserCodeError):
            task.check(outputs, (batch[0], labels))


def test_the_device_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(job(), 0) == "cpu"
    assert choose_device(job(gpu=1, resources={"device": "cpu"}), 1) == "cpu"
    for config in (job(gpu=1), job(resources={"device": "cuda"})):
        with pytest.raises(BackendUnavailable, match="no CUDA"):
            choose_device(config, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(job(), 1) == "cuda"
    assert choose_device(job(gpu=0), 0) == "cpu"


def test_a_gpu_that_was_not_asked_for_is_left_to_whom_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer GPUs than workers none is asked for, and every worker sees all of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(job(), 0) == "cpu"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0]])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_the_mean_of_classification_is_torchs(smoothing: float, weights: list[float] | None, ignored: int) -> None:
    task = Classification(label_smoothing=smoothing, ignore_index=ignored, class_weights=weights)
    scores, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    labels[3] = ignored
    parts = [task.loss(scores[rows], (scores[rows], labels[rows])) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    mean = sum(part.total for part in parts) / sum(part.weight for part in parts)
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(scores, labels, tensor, ignore_index=ignored, label_smoothing=smoothing)
    torch.testing.assert_close(mean, wanted)
    task.check(scores, (scores, labels))
    right = (scores.argmax(1) == labels)[labels != ignored].double().mean()
    total, weight = task.metrics(scores, (scores, labels))["accuracy"]
    assert float(total / weight) == pytest.approx(float(right))
