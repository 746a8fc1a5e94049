"""The optimizer's fitness for our steps, and its schedule: what a step could not serve is refused while the job is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch.optim import lr_scheduler

from launcher.config.schema import Component
from launcher.core.errors import ConfigError
from launcher.training.components import build, has_parameter
from launcher.training.state.train_state import Scheduler

TOTAL_STEPS = "total_steps"
"""As a value among the scheduler's parameters: the number of steps of the whole training."""


def check_optimizer(optimizer: torch.optim.Optimizer, choice: Component) -> None:
    """Raises ConfigError for an optimizer that takes something else than dense gradients, once a step."""
    if needed := _needed(optimizer.step):
        raise ConfigError(
            f"the optimizer's step needs arguments ({', '.join(needed)}), which is not supported: gradients are computed once a step",
            where="optimizer._target_",
            given=choice.target,
            expected="an optimizer whose step() needs nothing but the gradients, such as torch.optim.AdamW",
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ConfigError(
            "the optimizer takes sparse gradients alone; here they are summed over the workers dense",
            where="optimizer._target_",
            given=choice.target,
            expected="an optimizer of dense gradients, such as torch.optim.Adam",
            next="let the model's embeddings have sparse=False",
        )


def with_total_steps(component: Component, steps: int) -> Component:
    """The scheduler's choice with the number of steps in place of the word, also in schedulers among its parameters."""

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [put_in(item) for item in value]
        return steps if value == TOTAL_STEPS else value

    return replace(component, params=put_in(dict(component.params)))


def build_scheduler(choice: Component, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """The scheduler of an optimizer that takes `steps` steps; schedulers among its parameters get the same optimizer.

    Raises ConfigError for one that needs more than the step, or that ends before the training does.
    """
    # Most have the optimizer as their first parameter, whatever its name; ChainedScheduler has it elsewhere.
    first = () if has_parameter(choice, "optimizer", key="scheduler") else (optimizer,)
    scheduler: Scheduler = build(choice, *first, key="scheduler", offered={"optimizer": optimizer})
    if lacking := [name for name in ("step", "state_dict", "load_state_dict") if not callable(getattr(scheduler, name, None))]:
        raise ConfigError(
            f"it is no scheduler: it has no {lacking[0]}()",
            where="scheduler._target_",
            given=choice.target,
            expected="one of torch.optim.lr_scheduler",
        )
    for part, length in _parts(scheduler, steps):
        if needed := _needed(part.step):
            raise ConfigError(
                f"the scheduler needs a metric in every step ({', '.join(needed)}), which is not supported",
                where="scheduler._target_",
                given=type(part).__name__,
                expected="a scheduler that depends on the step alone",
            )
        if isinstance(part, lr_scheduler.OneCycleLR) and part.total_steps < length:
            raise ConfigError(
                "the schedule ends before the training does",
                where=f"scheduler ({type(part).__name__})",
                given=f"total_steps={part.total_steps}; it has to last for {length} steps",
                expected=f"at least {length} steps",
                next=f"set its total_steps to the word {TOTAL_STEPS}, which becomes the number of steps of the run",
            )
    return scheduler


def _parts(scheduler: Scheduler, steps: int) -> Iterator[tuple[Any, int]]:
    """The scheduler and those inside it, each with the number of steps that it takes."""
    yield scheduler, steps
    if isinstance(scheduler, lr_scheduler.ChainedScheduler):
        for inner in scheduler._schedulers:
            yield from _parts(inner, steps)
    elif isinstance(scheduler, lr_scheduler.SequentialLR):
        # At a milestone the next one begins anew, with its step 0.
        bounds = [0, *scheduler._milestones, steps]
        for inner, (begin, end) in zip(scheduler._schedulers, pairwise(bounds), strict=True):
            yield from _parts(inner, max(0, min(end, steps) - begin))


def _needed(step: Callable[..., object]) -> list[str]:
    """Parameters that have to be given."""
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in parameters if item.default is inspect.Parameter.empty and item.kind not in kinds]
