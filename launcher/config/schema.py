"""The configuration of a job as typed data: its groups, and the checks that look at more than one of them.

Nothing here imports Hydra. Other modules import every class of the configuration from here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from launcher.config.backend_groups import BackendConfig, KubeRayConfig, LocalConfig, RayConfig
from launcher.config.environment import check_environment
from launcher.config.groups import (
    CheckpointConfig,
    CodeConfig,
    Component,
    ElasticConfig,
    ResourcesConfig,
    TrackingConfig,
    TrainerConfig,
)
from launcher.config.keys import NotNegative, check_amounts
from launcher.core.errors import ConfigError
from launcher.record.desired import WorkerBounds
from launcher.record.variables import SecretReference

__all__ = [
    "COMPONENTS",
    "NAME_PATTERN",
    "BackendConfig",
    "CheckpointConfig",
    "CodeConfig",
    "Component",
    "ElasticConfig",
    "JobConfig",
    "KubeRayConfig",
    "LocalConfig",
    "RayConfig",
    "ResourcesConfig",
    "TrackingConfig",
    "TrainerConfig",
]

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
COMPONENTS = ("model", "data", "task", "optimizer", "scheduler")
"""Groups that choose a component: their keys are `_target_` and its arguments, and new ones can be added."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What `launch train` composes: everything that a job is made of."""

    name: str | None = None
    """Name of the run, unique in `runs`; null: its id."""
    runs: str = "./runs"
    """Where runs are recorded: a folder, or `s3://bucket/prefix`. The environment variable LAUNCHER_RUNS names another default."""
    seed: NotNegative[int] = 0
    """Seed of the first parameters, the order of samples, dropout and augmentation."""
    workers: WorkerBounds
    """How many, such as `2`, or lower and upper bound, such as `1..4`; the target is the upper one. At most as many as the batch has shards.
    `launch resize` changes it while the run goes on; a forward pass keeps the width that it has at the start, ceil(shards / upper bound)."""
    gpu: NotNegative[int] | None = None
    """GPUs of one worker; null: one each with `resources.device=cuda`, or where the machine has enough of them, else none."""
    environment: dict[str, str | SecretReference | None] = field(default_factory=dict)
    """Environment variables of the job, by name: `environment.DATA_ROOT=/b`. null: the value that the command has. A secret is named by where
    it is, `environment.HF_TOKEN.secret=HF_TOKEN`. Few others go with a job: see docs/configuration.md#environment-variables."""
    model: Component
    data: Component
    task: Component
    optimizer: Component
    scheduler: Component | None = None
    trainer: TrainerConfig
    elastic: ElasticConfig
    resources: ResourcesConfig
    checkpoint: CheckpointConfig
    backend: BackendConfig
    """Where the job runs. The other keys of the group depend on it."""
    tracking: TrackingConfig
    code: CodeConfig

    def __post_init__(self) -> None:
        self._check_name()
        self._check_runs()
        self._check_length()
        check_environment(self.environment)
        check_amounts(self)
        self._check_batch()
        self._check_workers()
        self._check_modes()

    def _check_name(self) -> None:
        if self.name is not None and not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError(
                "the name cannot be used",
                where="name",
                given=self.name,
                expected="1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit",
            )

    def _check_runs(self) -> None:
        if not self.runs:
            raise ConfigError(
                "it does not say where runs are recorded", where="runs", given="an empty text", expected="a folder, or s3://bucket/prefix"
            )

    def _check_length(self) -> None:
        steps, epochs = self.trainer.steps, self.trainer.epochs
        if (steps is None) == (epochs is None):
            given = "neither" if steps is None else f"steps={steps} and epochs={epochs}"
            raise ConfigError(
                "the length of the training is not clear", where="trainer.steps, trainer.epochs", given=given, expected="one of the two"
            )

    def _check_batch(self) -> None:
        batch, micro = self.trainer.global_batch_size, self.trainer.micro_batch_size
        if batch % micro:
            divisors = ", ".join(map(str, _divisors(batch)))
            raise ConfigError(
                "the global batch cannot be cut into equal shards",
                where="trainer.micro_batch_size",
                given=f"{micro}, with trainer.global_batch_size={batch}",
                expected=f"a divisor of {batch}: {divisors}",
            )

    def _check_workers(self) -> None:
        bounds = self.workers
        if not 1 <= bounds.min <= bounds.max:
            raise ConfigError(
                "the bounds do not fit together",
                where="workers",
                given=f"{bounds.min}..{bounds.max}",
                expected="1 <= min <= max, for example workers=2 or workers=1..4",
            )
        if bounds.max > self.shards:
            batch, micro = self.trainer.global_batch_size, self.trainer.micro_batch_size
            wanted = self.micro_batch_size_for(bounds.max)
            way_out = (
                f"trainer.micro_batch_size={wanted} or smaller, or a larger trainer.global_batch_size"
                if wanted
                else "a larger trainer.global_batch_size"
            )
            raise ConfigError(
                "there are more workers than shards of the batch",
                where="workers",
                given=f"{bounds.max} workers, {self.shards} shards (global_batch_size {batch} / micro_batch_size {micro})",
                expected=f"at most {self.shards} workers",
                next=f"set {way_out}",
            )

    def _check_modes(self) -> None:
        if self.elastic.exact and self.trainer.fuse == "on":
            raise ConfigError(
                "exact mode computes one shard at a time",
                where="trainer.fuse",
                given="on, with elastic.exact=true",
                expected="auto or off, or elastic.exact=false",
            )
        if self.resources.device == "cuda" and self.gpu == 0:
            raise ConfigError(
                "workers on CUDA need a GPU", where="gpu", given="0 with resources.device=cuda", expected="gpu=1, or resources.device=cpu"
            )

    @property
    def shards(self) -> int:
        """The number of logical shards that the batch of a step is cut into."""
        return self.trainer.global_batch_size // self.trainer.micro_batch_size

    def gpus_of_worker(self, total: int) -> int:
        """GPUs of one worker on a machine or cluster with `total` of them: as asked, else one where each worker can have one, else 0.

        A job that has to compute on CUDA takes one for each worker, also where there are too few: then it does not fit.
        """
        if self.gpu is not None:
            return self.gpu
        if self.resources.device == "cuda":
            return 1
        return int(self.resources.device == "auto" and total >= self.workers.max)

    def device_of_worker(self, gpus: int) -> str:
        """What a worker with that many GPUs computes on: cuda or cpu."""
        return "cpu" if gpus == 0 or self.resources.device == "cpu" else "cuda"

    def micro_batch_size_for(self, workers: int) -> int | None:
        """The largest micro_batch_size, in samples, with which each of so many workers has a shard of this batch; None where there is none."""
        batch = self.trainer.global_batch_size
        return max((size for size in _divisors(batch) if batch // size >= workers), default=None)

    def threads(self, cores: int) -> int:
        """CPU threads of one worker on a machine with so many cores; in exact mode they do not depend on the machine."""
        if self.resources.threads is not None:
            return self.resources.threads
        return 1 if self.elastic.exact else max(1, cores // self.workers.max)

    @property
    def fused_shards(self) -> int:
        """Most shards in one forward pass: one pass a step with all workers, and passes of the same width with fewer."""
        return -(-self.shards // self.workers.max)


def _divisors(number: int) -> list[int]:
    """In rising order. Tries no more numbers than the square root: a batch with a few zeros too many is answered at once as well."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})
