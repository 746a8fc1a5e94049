from __future__ import annotations

import random
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch

from launcher.core.errors import BackendUnavailable, UserCodeError
from launcher.training.data.data_order import DataOrder
from launcher.training.data.samples import Samples, read_forward
from launcher.training.device import choose_device
from launcher.training.shards.batch import BatchPlan
from launcher.training.shards.global_generators import begin_on_cpu
from launcher.training.tasks import Classification
from tests.unit.training.small_jobs import AugmentedSplit, FastSplit, Split, job

pytestmark = pytest.mark.unit
PLAN = BatchPlan(global_batch_size=12, micro_batch_size=3, width=2)


@pytest.mark.parametrize("kind", [Split, FastSplit])
def test_a_fused_batch_interleaves_its_shards(kind: type[Split]) -> None:
    split = kind(20, 1)
    order = DataOrder(size=20, seed=4)
    images, labels = read_forward(Samples(split, where="data.train", device="cpu", seed=0), order, PLAN, 3, range(2, 4))
    first, second = order.samples(3 * 12 + 6, 3), order.samples(3 * 12 + 9, 3)
    rows = np.stack([first, second], 1).flatten()
    assert torch.equal(images, split.images[rows])
    assert torch.equal(labels, split.labels[rows])


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    seen = {}
    for seed in (0, 1):
        samples = Samples(AugmentedSplit(12, 1), where="data.train", device="cpu", seed=seed)
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


class NotTensors(Split):
    def __getitem__(self, index: int) -> Any:
        return self.images[index], "a name"


class TooFew(FastSplit):
    def batch(self, indices: torch.Tensor) -> Any:
        return super().batch(indices[1:])


class TooFewTogether(Split):
    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices[1:]]


class OneSum(Split):
    def collate_fn(self, samples: list[Any]) -> Any:
        return torch.stack([image for image, _ in samples]), torch.tensor(1.0)


class OfTwoSizes(Split):
    def __getitem__(self, index: int) -> Any:
        return self.images[index].flatten()[: 1 + index % 2], self.labels[index]


@pytest.mark.parametrize(
    ("split", "what"),
    [
        (NotTensors(5, 1), "no tensor"),
        (TooFew(5, 1), r"batch\(indices\) gave another number"),
        (TooFewTogether(5, 1), "__getitems__ gave another number"),
        (OneSum(5, 1), "collate_fn gave another number"),
        (OfTwoSizes(5, 1), "cannot be made one batch"),
        (object(), "by index"),
    ],
)
def test_samples_that_cannot_be_used_are_explained(split: Any, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        Samples(split, where="data.train", device="cpu", seed=0).read(np.arange(3))
    assert caught.value.where == "data.train"


class Mixed(Split):
    """A sample as users write it: an array, a whole number, a number, and a mapping of its own."""

    def __getitem__(self, index: int) -> Any:
        return self.images[index].numpy(), int(self.labels[index]), 0.5 * index, {"at": torch.tensor([index])}


def test_samples_are_put_together_as_torchs_loader_does() -> None:
    split = Mixed(5, 1)
    images, labels, halves, more = Samples(split, where="data.train", device="cpu", seed=0).read(np.array([3, 1]))
    assert torch.equal(images, split.images[[3, 1]])
    assert torch.equal(labels, split.labels[[3, 1]])
    assert halves.tolist() == [1.5, 0.5]
    assert more["at"].tolist() == [[3], [1]]


class Together(Split):
    """Reads several at once, and puts them together itself."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self.asked: list[list[int]] = []

    def __getitems__(self, indices: list[int]) -> Any:
        self.asked.append(indices)
        return [(self.images[index], index) for index in indices]

    def collate_fn(self, samples: list[Any]) -> Any:
        return UserDict(image=torch.stack([image for image, _ in samples]), index=torch.tensor([index for _, index in samples]))


def test_a_data_sets_own_getitems_and_collate_fn_are_used_for_each_shard() -> None:
    split, order = Together(20, 1), DataOrder(size=20, seed=4)
    batch = read_forward(Samples(split, where="data.train", device="cpu", seed=0), order, PLAN, 3, range(2, 4))
    first, second = order.samples(3 * 12 + 6, 3).tolist(), order.samples(3 * 12 + 9, 3).tolist()
    assert split.asked == [first, second]
    rows = np.stack([first, second], 1).flatten().tolist()
    assert batch["index"].tolist() == rows
    assert torch.equal(batch["image"], split.images[rows])
    assert len(batch["index"]) == 6


class Drawn(Split):
    def __getitem__(self, index: int) -> Any:
        return torch.tensor([random.random(), np.random.random(), float(torch.rand(()))]), self.labels[index]


def draws(shards: range, step: int, seed: int = 0) -> dict[int, list[float]]:
    """By sample of an epoch of 12, which is a step."""
    order = DataOrder(size=12, seed=seed)
    numbers, _ = read_forward(Samples(Drawn(12, 1), where="data.train", device="cpu", seed=seed), order, PLAN, step, shards)
    indices = order.samples(step * 12 + shards.start * 3, len(shards) * 3).reshape(len(shards), 3).T.flatten()
    return dict(zip(indices.tolist(), numbers.tolist(), strict=True))


def test_what_a_data_set_draws_depends_on_seed_epoch_and_sample_alone() -> None:
    whole = draws(range(2), 0) | draws(range(2, 4), 0)
    assert len(whole) == 12
    for shard in range(4):
        assert draws(range(shard, shard + 1), 0).items() <= whole.items()
    for others in (draws(range(4), 1), draws(range(4), 0, seed=1)):
        assert all(a != b for index in range(12) for a, b in zip(whole[index], others[index], strict=True))
    assert len({number for numbers in whole.values() for number in numbers}) == 36


def test_held_out_samples_draw_the_same_in_every_evaluation() -> None:
    samples = Samples(Drawn(12, 1), where="data.test", device="cpu", seed=3)
    numbers, _ = samples.read(np.arange(4))
    again, _ = samples.read(np.array([2, 3]))
    assert torch.equal(numbers[2:], again)


def test_reading_leaves_the_generators_as_they_were() -> None:
    def drawn() -> list[float]:
        return [random.random(), np.random.random(), float(torch.rand(()))]

    begin_on_cpu(5)
    wanted = drawn()
    begin_on_cpu(5)
    Samples(Drawn(12, 1), where="data.train", device="cpu", seed=0).read(np.arange(3), np.zeros(3, dtype=np.int64))
    assert drawn() == wanted


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
