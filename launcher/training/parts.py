"""A job's data, task, model, optimizer and scheduler: built as its configuration says, and seen to fit together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from launcher.config.schema import JobConfig
from launcher.core.errors import ConfigError, UserCodeError
from launcher.training.components import build
from launcher.training.data.data_order import DataOrder
from launcher.training.data.reading_processes import ReadingProcesses, start_fork_server
from launcher.training.data.samples import Samples
from launcher.training.left_as_it_was import left_as_it_was
from launcher.training.objective import Objective
from launcher.training.optimization import build_scheduler, check_optimizer, with_total_steps
from launcher.training.shards.batch import total_steps
from launcher.training.shards.per_shard import PerShardLayers
from launcher.training.state.train_state import TrainState
from launcher.training.tasks import Task

TRAIN, TEST = "data.train", "data.test"
SAMPLES_CHECKED = 2
"""How many samples the model is tried on before anything else."""


@dataclass(frozen=True)
class JobParts:
    """What one worker trains with, on its device."""

    train: Samples
    test: Samples
    order: DataOrder
    """Of the samples of `train`."""
    reading: ReadingProcesses | None
    """Processes that read `train` and `test` ahead; None where samples are read on the spot."""
    total_steps: int
    """Optimizer steps of the whole training."""
    objective: Objective
    """The model under the task."""
    layers: PerShardLayers
    state: TrainState
    """Model, optimizer and scheduler."""

    @property
    def model(self) -> nn.Module:
        return self.objective.model


def build_parts(config: JobConfig, device: str) -> JobParts:
    """Import and build what the configuration chose, from its seed on.

    Raises ConfigError or UserCodeError where the parts do not fit together; what the user's own code raises comes out unchanged.
    """
    if config.resources.data_workers > 0:
        start_fork_server()
    splits = build_splits(config, device)
    train, test = splits[TRAIN], splits[TEST]
    reading = None
    if config.resources.data_workers > 0 and not (train.immediate and test.immediate):
        reading = ReadingProcesses(config.resources.data_workers, partial(build_splits, config, "cpu"))
    task = _build_task(config)
    model = _build_model(config, device)
    objective = Objective(model, task, precision=config.trainer.precision, device=device)
    _check_output(objective, train)
    model.train()
    layers = PerShardLayers(model, seed=config.seed, micro_batch_size=config.trainer.micro_batch_size)
    steps = total_steps(config.trainer, len(train))
    state = _build_state(config, model, steps)
    return JobParts(train, test, DataOrder(size=len(train), seed=config.seed), reading, steps, objective, layers, state)


def build_splits(config: JobConfig, device: str) -> dict[str, Samples]:
    """The train and the test split by their names, built from the seed on. Raises as `build_parts`."""
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    try:
        data = build(config.data, key="data")
    except OSError as error:
        raise UserCodeError(
            f"the data cannot be read: {error.strerror or error}",
            where=f"data ({config.data.target})",
            given=str(error.filename or config.data.params),
            expected="files that this worker may read",
        ) from error
    for split in ("train", "test"):
        if not hasattr(data, split):
            raise UserCodeError(
                f"the data has no {split} split",
                where="data._target_",
                given=config.data.target,
                expected="an object with .train and .test",
            )
    splits = {TRAIN: data.train, TEST: data.test}
    return {name: Samples(split, where=name, device=device, seed=config.seed) for name, split in splits.items()}


def _build_task(config: JobConfig) -> Task:
    task: Task = build(config.task, key="task")
    missing = [name for name in ("inputs", "loss", "metrics", "check") if not callable(getattr(task, name, None))]
    if missing:
        raise UserCodeError(
            f"the task has no {missing[0]}",
            where="task._target_",
            given=config.task.target,
            expected="an object with inputs, loss, metrics and check",
            next="docs/extending.md says what they give",
        )
    return task


def _build_model(config: JobConfig, device: str) -> nn.Module:
    model = build(config.model, key="model")
    if not isinstance(model, nn.Module):
        raise UserCodeError(
            "the model is not a torch.nn.Module", where="model._target_", given=type(model).__name__, expected="a torch.nn.Module"
        )
    return model.to(device)


def _check_output(objective: Objective, train: Samples) -> None:
    """Let the task look at the model's outputs for the first samples."""
    batch = train.read(np.arange(min(SAMPLES_CHECKED, len(train)), dtype=np.int64))
    model, task = objective.model, objective.task
    model.eval()
    with torch.no_grad(), left_as_it_was(model), objective.autocast():
        task.check(model(*task.inputs(batch)), batch)
        objective(batch)


def _build_state(config: JobConfig, model: nn.Module, steps: int) -> TrainState:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserCodeError("the model has no parameters to train", where="model._target_", given=config.model.target)
    strange = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_complex()]
    if strange:
        raise UserCodeError(
            "complex parameters and buffers cannot be added up over workers",
            where="model._target_",
            given=", ".join(strange[:3]),
            expected="real ones",
            next="keep torch.view_as_real(...) of it, and use torch.view_as_complex(...) in forward",
        )
    # As in a plain loop, frozen ones too: a model may thaw them later.
    optimizer = build(config.optimizer, list(model.parameters()), key="optimizer")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError("it is no optimizer", where="optimizer._target_", given=config.optimizer.target, expected="one of torch.optim")
    check_optimizer(optimizer, config.optimizer)
    schedule = config.scheduler and with_total_steps(config.scheduler, steps)
    scheduler = None if schedule is None else build_scheduler(schedule, optimizer, steps)
    return TrainState(model, optimizer, scheduler, config.optimizer, schedule)
