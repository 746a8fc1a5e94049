"""The groups of the configuration that hold on every backend: one frozen dataclass for each folder under configs/.

The type of a field is the type of the key, with the bound of a number; the text under it is the key's documentation. The files under
configs/ and the tables of docs/configuration.md are written from both by `python -m launcher.config.describe`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from launcher.config.keys import NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that YAML chooses: a callable by its import path, and its keyword arguments."""

    target: str
    """Written `_target_`, for example models.resnet.ResNet."""
    params: dict[str, object] = field(default_factory=dict)
    """The other keys, with the values that YAML gives them."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train, and in which portions."""

    steps: Positive[int] | None = None
    """Optimizer steps in all. Either this or `trainer.epochs`: whichever the command line names replaces the other."""
    epochs: Positive[float] | None = None
    """Passes over the training data: ceil(epochs × size / global_batch_size) steps."""
    global_batch_size: Positive[int] = 64
    """Samples in one optimizer step, whatever the number of workers."""
    micro_batch_size: Positive[int] = 8
    """Samples in one logical shard of the batch; must divide the global batch. A constant of the experiment: BatchNorm's statistics are
    per shard."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes under autocast; parameters and reductions stay fp32."""
    grad_clip_norm: Positive[float] | None = None
    """Largest global norm of the gradient; null: no clipping."""
    eval_every_steps: Positive[int] | None = None
    """Evaluate on the held-out split every so many steps; always at the end as well."""
    log_every_steps: Positive[int] = 10
    """Training metrics are means over so many steps."""
    fuse: Literal["auto", "on", "off"] = "auto"
    """Several shards in one forward pass; auto decides by a trial at start-up, `launch events` says what it found."""


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """How the group of workers changes while it trains."""

    exact: bool = False
    """Bitwise the same parameters, buffers and optimizer state whatever the number of workers, on equal devices. One shard is computed at a
    time, so it has a price: see docs/configuration.md#exact-mode."""
    horizon_s: Positive[float] = 600.0
    """Growing that nobody asked for must pay for its pause within so many seconds of training."""
    cooldown_s: float = 10.0
    """Seconds between two changes of the group that nobody asked for; a lost or draining worker does not wait for it."""
    capacity_timeout_s: Positive[float] = 1800.0
    """Seconds to wait, below the lower bound of `workers`, for capacity to come back before the run fails."""
    silence_s: Positive[float] = 3.0
    """A worker of which nothing is heard for so many seconds, and for six of its steps, is evicted."""
    hang_s: Positive[float] = 60.0
    """A worker that lives but keeps the others waiting for so many seconds, and for twenty of its steps, is evicted."""
    drain_s: Positive[float] = 25.0
    """Seconds that a worker has to leave after SIGTERM or a notice that names no deadline."""
    notice_file: str | None = None
    """A file whose appearance on a worker's machine says that the machine will be taken away (a preemption notice)."""
    evict_stragglers: bool = False
    """Replace a worker that is much slower than the others; else it is only reported."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a worker computes on."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where the worker takes GPUs (`gpu`), else the CPU."""
    threads: Positive[int] | None = None
    """CPU threads of one worker; null: the cores of the machine divided by the upper bound of `workers`, or one with `elastic.exact=true`."""
    data_workers: NotNegative[int] = 0
    """Processes of one worker that read samples ahead of the step, each with a data set of its own; 0: samples are read on the spot, between
    two steps. A split that offers `batch` and no `augment` is always read on the spot."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of the training is saved, and what it begins with."""

    every_steps: Positive[int] | None = 100
    """Save every so many steps, and always at the end and on stop; null: only then."""
    keep: Positive[int] = 3
    """Checkpoints that stay; older ones are deleted."""
    init_from: str | None = None
    """RUN, or RUNS/RUN: its newest checkpoint gives the first weights of a new run; nothing but the model is taken from it."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go beside the run's own record."""

    name: Literal["wandb", "none"] = "wandb"
    """wandb: to Weights & Biases (W&B); none: nowhere."""
    project: str = "launcher"
    """Project of W&B."""
    entity: str | None = None
    """User or team of W&B; null: the default of the login."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online where a key is found (`WANDB_API_KEY` or a login), else offline; `launch events` says where the files are."""


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """What is sent with the job as its code."""

    allow: tuple[str, ...] = ()
    """Paths, or patterns of paths, of files that look like secrets and are sent with the code all the same."""
