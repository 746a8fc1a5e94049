"""Models, data and jobs small enough to train in a moment, for tests of the training engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart, assemble
from launcher.config.parse import parse_config
from launcher.config.schema import JobConfig
from launcher.core.store import KeyMissing, ObjectInfo
from launcher.core.types import RunId, Term
from launcher.record.run_store import RunStore
from launcher.training.comm.collective import Collective
from launcher.training.step import StepFlags
from launcher.training.trainer import StepRecord, Trainer

HERE = "tests.unit.training.small_jobs"
CLASSES = 3


class Split:
    def __init__(self, size: int, seed: int, shape: tuple[int, ...] = (1, 8, 8)) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)
        self.images = torch.randn(size, *shape, generator=generator) + self.labels.view(-1, *(1 for _ in shape))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class FastSplit(Split):
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


class AugmentedSplit(FastSplit):
    def augment(self, image: Tensor, label: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return image + 0.1 * torch.randn(image.shape, generator=generator), label


class Data:
    def __init__(self, kind: str = "FastSplit", size: int = 52, test_size: int = 23, side: int = 8, double: bool = False) -> None:
        split = globals()[kind]
        self.train, self.test = split(size, 1, (1, side, side)), split(test_size, 2, (1, side, side))
        if double:
            self.train.images, self.test.images = self.train.images.double(), self.test.images.double()


def in_double_precision(model: nn.Module) -> nn.Module:
    return model.double()


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES)
        )


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, CLASSES))


class WithNorm(nn.Sequential):
    """`unused`: a parameter that no sample reaches."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
        )
        self.unused = nn.Parameter(torch.ones(3))


class FunctionalDropout(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.dropout(x, 0.3, self.training))


class MixesSamples(Plain):
    """Each sample's score depends on the others in its shard."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class WithOwnBuffers(Plain):
    """`seen`: a running mean of its own; `calls`: a count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(64))
        self.register_buffer("calls", torch.tensor(2**40))
        self.register_buffer("constant", torch.full((2,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.mul_(0.9).add_(0.1 * x.detach().flatten(1).mean(0))
            self.calls += 1
        return super().forward(x)


class NotANumber(Plain):
    """NaN from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x) * (float("nan") if self.calls > 2 else 1.0)


class Breaks(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.weight_moved():
            raise ZeroDivisionError("mine")
        return super().forward(x)

    def weight_moved(self) -> bool:
        start = self.__dict__.setdefault("start", self[1].weight.detach().clone())
        return not torch.equal(start, self[1].weight)


class MemoryStore:
    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise KeyMissing(key)
        return self.objects[key]

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Recorder:
    """An Observer that keeps everything, and asks to stop, or to go over to the next generation, after a step where it is told to."""

    def __init__(self, stop_at: int | None = None, switch_at: int | None = None) -> None:
        self.records: list[StepRecord] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.parts: list[CheckpointPart] = []
        self.failures: list[tuple[int, Exception]] = []
        self.stop_at = stop_at
        self.switch_at = switch_at

    def applied(self, record: StepRecord) -> None:
        self.records.append(record)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations.append((step, metrics))

    def saved(self, part: CheckpointPart, seconds: float) -> None:
        self.parts.append(part)

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        self.failures.append((step, error))

    def doing(self, what: str) -> None: ...

    def flags(self) -> StepFlags:
        done = len(self.records)
        return StepFlags(
            stop=self.stop_at is not None and done >= self.stop_at - 1, switch=self.switch_at is not None and done >= self.switch_at - 1
        )

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.records]


def job(model: str | dict[str, Any] = "WithNorm", *, data: dict[str, Any] | None = None, **groups: Any) -> JobConfig:
    """B = 32 in 8 shards of 4, 6 steps, SGD with momentum; `groups` replace keys of the groups that they name."""
    document: dict[str, Any] = {
        "workers": "1..4",
        "model": {"_target_": f"{HERE}.{model}"} if isinstance(model, str) else model,
        "data": {"_target_": f"{HERE}.Data", **(data or {})},
        "task": {"_target_": "launcher.training.tasks.Classification"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
        "trainer": {"steps": 6, "global_batch_size": 32, "micro_batch_size": 4},
        **{group: {} for group in ("elastic", "resources", "checkpoint", "backend", "tracking", "code")},
    }
    for group, values in groups.items():
        known = document.get(group)
        replaces = isinstance(values, dict) and "_target_" in values
        document[group] = {**known, **values} if isinstance(known, dict) and isinstance(values, dict) and not replaces else values
    return parse_config(document)


def run_store(store: MemoryStore | None = None) -> RunStore:
    return RunStore(store or MemoryStore(), RunId("run-1"))


def alone(generation: int = 1) -> Collective:
    return Collective(generation=generation, rank=0, world_size=1, device="cpu", timeout_s=1.0)


def trainer(config: JobConfig, recorder: Recorder, run: RunStore | None = None) -> Trainer:
    """Built and ready to run."""
    made = Trainer(config, run or run_store(), recorder, device="cpu", threads=1)
    made.build()
    return made


def manifest(parts: list[CheckpointPart], config: JobConfig) -> CheckpointManifest:
    """Of the newest step among the parts."""
    newest = max(part.step for part in parts)
    return assemble(
        [part for part in parts if part.step == newest],
        run_id=RunId("run-1"),
        term=Term(1),
        global_batch_size=config.trainer.global_batch_size,
        created_at="2026-01-01T00:00:00.000Z",
    )
