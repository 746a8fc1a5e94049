"""The configuration as typed data: one frozen dataclass for each group under configs/, cross-field checks in JobConfig.

Nothing here imports Hydra. The docstring under a field is its documentation; units are in the name or there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from launcher.core.errors import ConfigError
from launcher.record.desired import WorkerBounds

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that YAML chooses: a callable by its import path, and its keyword arguments."""

    target: str
    """Written `_target_`, for example models.resnet.ResNet."""
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    steps: int | None = None
    """Optimizer steps in all; either this or `epochs`."""
    epochs: float | None = None
    """Passes over the training data: ceil(epochs x size / global_batch_size) steps."""
    global_batch_size: int = 64
    """Samples in one optimizer step, whatever the number of workers."""
    micro_batch_size: int = 8
    """Samples in one logical shard of the batch; a constant of the experiment. BatchNorm's statistics are per shard."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes under autocast; parameters and reductions stay fp32."""
    grad_clip_norm: float | None = None
    """Largest global norm of the gradient; null: no clipping."""
    eval_every_steps: int | None = None
    """Evaluate on the held-out split every so many steps; always at the end as well."""
    log_every_steps: int = 10
    """Training metrics are means over so many steps."""
    fuse: Literal["auto", "on", "off"] = "auto"
    """Several shards in one forward pass: auto decides by a trial at start-up."""


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    exact: bool = False
    """Bitwise the same parameters whatever the world size and its changes, on equal devices; one shard at a time, so it has a price."""
    horizon_s: float = 600.0
    """Growing, where nobody asked for it, must pay for its pause within so many seconds of training."""
    cooldown_s: float = 10.0
    """Between two changes of the group that nobody asked for; a lost or draining worker does not wait for it."""
    capacity_timeout_s: float = 1800.0
    """How long to wait, below workers.min, for capacity to come back before the run fails."""
    silence_s: float = 3.0
    """A worker of which nothing is heard for so long, and for six of its steps, is given up."""
    hang_s: float = 60.0
    """A worker that lives but keeps the others waiting for so long, and for twenty of its steps, is given up."""
    drain_s: float = 25.0
    """How long a worker has to leave after SIGTERM or a notice that names no deadline."""
    notice_file: str | None = None
    """A file whose appearance on a worker's machine says that the machine will be taken away (a preemption notice)."""
    evict_stragglers: bool = False
    """Replace a worker that is much slower than the others; else it is only reported."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where the worker has it, else the CPU."""
    threads: int | None = None
    """CPU threads of one worker; null: the cores of the machine shared among workers.max, with elastic.exact one."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int | None = None
    """Save every so many steps; always at the end and on stop as well."""
    keep: int = 3
    """Checkpoints that stay; older ones are deleted."""
    init_from: str | None = None
    """RUN or RUNS/RUN whose newest checkpoint gives the first weights (model only) of a new run."""


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A Ray on this machine, shared by all jobs."""

    name: Literal["local"] = "local"


@dataclass(frozen=True, kw_only=True)
class KubeRayConfig:
    """A Ray cluster of its own on Kubernetes."""

    name: Literal["kuberay"] = "kuberay"
    context: str | None = None
    """Of the kubeconfig; null: its current one."""
    namespace: str | None = None
    """null: that of the context, else `default`."""
    image: str
    """With launcher, Ray and torch of the versions that submit."""
    requirements: str | None = None
    """A file in pip's requirements format: extra packages, installed on each machine of the job beside what the image has."""
    secret: str | None = None
    """Name of a Secret in the namespace whose keys become environment variables of the controller: those of the run store and of W&B."""
    priority_class: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes on which workers may run."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Of workers, as Kubernetes writes them."""
    cpu: str = "1"
    """CPUs of one worker, as a Kubernetes quantity."""
    memory: str = "4Gi"
    """Of one worker; shared memory counts."""
    gpu_resource: str = "nvidia.com/gpu"
    """What `gpu` counts: nvidia.com/gpu, or a slice such as nvidia.com/mig-1g.10gb."""
    autoscaled_nodes: bool = False
    """Nodes come when pods wait for them: what is there now does not bound a job."""
    head_cpu: str = "1"
    head_memory: str = "8Gi"
    """Of the head, which carries Ray and the controller and no worker."""
    overlay: dict[str, Any] = field(default_factory=dict)
    """Merged into the pod template of the workers, lists by their items' names, for what is not foreseen here."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """A Ray cluster that is there already."""

    name: Literal["ray"] = "ray"
    address: str
    """Of its dashboard, which takes the jobs: http://HOST:8265."""
    token_file: str | None = None
    """File on this machine with the cluster's token, absolute or under ~; null: RAY_AUTH_TOKEN, else the file that Ray itself would read."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address)
            whole = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
            )
        except ValueError:  # the port is no number, or a bracket is not closed
            whole = False
        if not whole:
            raise ConfigError(
                "this is not the address of a Ray dashboard",
                where="backend.address",
                given=_without_user(self.address),
                expected="http://HOST:8265 or https://HOST/PATH; jobs go through the dashboard, not through ray:// or the port 6379",
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "the address holds a user or a password, and addresses are recorded",
                where="backend.address",
                given=_without_user(self.address),
                expected="an address alone, with the token in a file",
                next="set backend.token_file, or RAY_AUTH_TOKEN",
            )
        if self.token_file is not None and not self.token_file.startswith(("/", "~")):
            raise ConfigError(
                "the path of the token depends on the folder that one is in, and every command has to find it",
                where="backend.token_file",
                given=self.token_file,
                expected="an absolute path, or one that begins with ~",
            )


def _without_user(address: str) -> str:
    """What may be shown of an address that somebody put a password into."""
    before, at, after = address.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else address


BackendConfig = LocalConfig | KubeRayConfig | RayConfig
"""Where the job runs: which keys there are follows from the name."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    name: Literal["wandb", "none"] = "wandb"
    project: str = "launcher"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online where a key is found (WANDB_API_KEY or a login), else offline."""


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    allow: tuple[str, ...] = ()
    """Files that look like secrets and may travel with the code all the same, by their path."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    name: str | None = None
    """Name of the run, unique in `runs`; null: its id."""
    runs: str = "./runs"
    """Where runs are recorded: a folder, or s3://bucket/prefix."""
    seed: int = 0
    workers: WorkerBounds
    """Written 2 or 1..4 (lower and upper bound; the target is the upper one)."""
    gpu: int | None = None
    """GPUs of one worker; null: one each where the machine has enough of them, else none."""
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
    tracking: TrackingConfig
    code: CodeConfig

    def __post_init__(self) -> None:
        self._check_name()
        self._check_amounts()
        self._check_batch()
        self._check_workers()
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

    def _check_name(self) -> None:
        if self.name is not None and not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError(
                "the name cannot be used",
                where="name",
                given=self.name,
                expected="1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit",
            )

        if not self.runs:
            raise ConfigError(
                "it does not say where runs are recorded", where="runs", given="an empty text", expected="a folder, or s3://bucket/prefix"
            )

    def _check_amounts(self) -> None:
        trainer, checkpoint = self.trainer, self.checkpoint
        if (trainer.steps is None) == (trainer.epochs is None):
            given = "neither" if trainer.steps is None else f"steps={trainer.steps} and epochs={trainer.epochs}"
            raise ConfigError(
                "the length of the training is not clear", where="trainer.steps, trainer.epochs", given=given, expected="one of the two"
            )
        amounts: list[tuple[str, float | None]] = [
            ("trainer.steps", trainer.steps),
            ("trainer.epochs", trainer.epochs),
            ("trainer.global_batch_size", trainer.global_batch_size),
            ("trainer.micro_batch_size", trainer.micro_batch_size),
            ("trainer.grad_clip_norm", trainer.grad_clip_norm),
            ("trainer.eval_every_steps", trainer.eval_every_steps),
            ("trainer.log_every_steps", trainer.log_every_steps),
            ("checkpoint.every_steps", checkpoint.every_steps),
            ("checkpoint.keep", checkpoint.keep),
            ("resources.threads", self.resources.threads),
            ("elastic.horizon_s", self.elastic.horizon_s),
            ("elastic.capacity_timeout_s", self.elastic.capacity_timeout_s),
            ("elastic.silence_s", self.elastic.silence_s),
            ("elastic.hang_s", self.elastic.hang_s),
            ("elastic.drain_s", self.elastic.drain_s),
        ]
        for key, amount in amounts:
            if amount is not None and not amount > 0:
                raise ConfigError("the value is too small", where=key, given=str(amount), expected="more than 0")
        for key, count in (("seed", self.seed), ("gpu", self.gpu)):
            if count is not None and count < 0:
                raise ConfigError("the value is too small", where=key, given=str(count), expected="0 or more")

    def _check_batch(self) -> None:
        batch, micro = self.trainer.global_batch_size, self.trainer.micro_batch_size
        if batch % micro:
            divisors = ", ".join(str(number) for number in range(1, batch + 1) if batch % number == 0)
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

    @property
    def shards(self) -> int:
        """V: the number of logical shards that the batch of a step is cut into."""
        return self.trainer.global_batch_size // self.trainer.micro_batch_size

    def gpus_of_worker(self, total: int) -> int:
        """How many GPUs a worker takes where there are `total`: as asked, else one each where all workers can have one."""
        if self.gpu is not None:
            return self.gpu
        return int(self.resources.device != "cpu" and total >= self.workers.max)

    def device_of_worker(self, gpus: int) -> str:
        """What a worker with so many GPUs computes on: cuda or cpu."""
        return "cpu" if gpus == 0 or self.resources.device == "cpu" else "cuda"

    def micro_batch_size_for(self, workers: int) -> int | None:
        """The largest micro_batch_size that gives each of so many workers a shard of this batch; None where none does."""
        batch = self.trainer.global_batch_size
        return max((size for size in range(1, batch + 1) if batch % size == 0 and batch // size >= workers), default=None)

    def threads(self, cores: int) -> int:
        """CPU threads of one worker on a machine with so many cores; in exact mode never a function of the machine."""
        if self.resources.threads is not None:
            return self.resources.threads
        return 1 if self.elastic.exact else max(1, cores // self.workers.max)

    @property
    def fused_shards(self) -> int:
        """Shards in one forward pass at the most: one pass a step at full size, and the same shape at smaller ones."""
        return -(-self.shards // self.workers.max)
