"""What a checkpoint holds, and how it is taken back: tensors by name, everything else as JSON.

Tensors: model.NAME for parameters and buffers, optimizer.PARAMETER.KEY for what the optimizer keeps as tensors.
JSON: step; the optimizer's other state and, for each group, its hyper-parameters; the scheduler's state.
Both are kept beside the configuration that made them: what the present configuration says wins where the two differ.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.schema import Component
from launcher.core.errors import CheckpointCorrupt, ConfigError, UserCodeError
from launcher.core.types import JsonObject

MODEL = "model."
OPTIMIZER = "optimizer."


class TrainState:
    """Model, optimizer and scheduler of one worker."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any | None,
        optimizer_choice: Component,
        scheduler_choice: Component | None,
    ) -> None:
        """The choices are what the configuration says, with `total_steps` already put in."""
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._optimizer_choice = _choice(optimizer_choice)
        self._scheduler_choice = None if scheduler_choice is None else _choice(scheduler_choice)
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name; not copies."""
        named = {MODEL + name: value for name, value in self._model_tensors().items()}
        for index, kept in self.optimizer.state_dict()["state"].items():
            for key, value in kept.items():
                if isinstance(value, Tensor):
                    named[f"{OPTIMIZER}{self._names[index]}.{key}"] = value
        return named

    def document(self, step: int) -> JsonObject:
        """Everything that is no tensor. Raises UserCodeError where it is no JSON."""
        packed = self.optimizer.state_dict()
        scalars = {
            self._names[index]: {key: value for key, value in kept.items() if not isinstance(value, Tensor)}
            for index, kept in packed["state"].items()
        }
        groups = [{key: value for key, value in group.items() if key != "params"} for group in packed["param_groups"]]
        return {
            "step": step,
            "optimizer": {
                "choice": self._optimizer_choice,
                "scalars": _json(scalars, "optimizer"),
                "groups": _json(groups, "optimizer"),
            },
            "scheduler": None
            if self.scheduler is None
            else {"choice": self._scheduler_choice, "state": _json(self.scheduler.state_dict(), "scheduler")},
        }

    def load_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Parameters and buffers. Raises CheckpointCorrupt when names or shapes are not those of the model."""
        given = {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)}
        own = self._model_tensors()
        for name in own.keys() | given.keys():
            shapes = [tuple(values[name].shape) if name in values else "nothing" for values in (given, own)]
            if shapes[0] != shapes[1]:
                raise CheckpointCorrupt(
                    "the checkpoint does not fit the model",
                    where=f"model.{name}",
                    given=f"{shapes[0]} in the checkpoint",
                    expected=f"{shapes[1]}, as the model has it",
                    next="use the model that the checkpoint was made with",
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(given[name])

    def load(self, tensors: Mapping[str, Tensor], document: Any) -> int:
        """The whole state; the step that it is of. Raises CheckpointCorrupt or ConfigError where it does not fit."""
        self.load_model(tensors)
        try:
            same_optimizer = document["optimizer"]["choice"] == self._optimizer_choice
            saved = document["scheduler"]
            same_schedule = same_optimizer and (saved and saved["choice"]) == self._scheduler_choice
            self._load_optimizer(tensors, document["optimizer"], hyper_parameters=same_schedule)
            if same_schedule and self.scheduler is not None:
                self.scheduler.load_state_dict(saved["state"])
            elif self.scheduler is not None:
                self._replay_schedule(int(document["step"]))
            return int(document["step"])
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointCorrupt("the state of a checkpoint is damaged", given=f"{type(error).__name__}: {error}") from error

    def _model_tensors(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def _load_optimizer(self, tensors: Mapping[str, Tensor], saved: Any, *, hyper_parameters: bool) -> None:
        if saved["choice"]["target"] != self._optimizer_choice["target"]:
            raise ConfigError(
                "the checkpoint was made with another optimizer",
                where="optimizer._target_",
                given=str(self._optimizer_choice["target"]),
                expected=str(saved["choice"]["target"]),
                next="keep the optimizer, or begin a new run with checkpoint.init_from",
            )
        present = self.optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(self._names):
            prefix = f"{OPTIMIZER}{name}."
            kept = dict(saved["scalars"].get(name, {}))
            kept |= {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
            if kept:
                state[index] = kept
        groups = present["param_groups"]
        if hyper_parameters:
            groups = [{**group, **_tuples(old)} for group, old in zip(groups, saved["groups"], strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _replay_schedule(self, step: int) -> None:
        """The configuration has another schedule than the checkpoint: be where it would be had it been there from the start."""
        assert self.scheduler is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects an optimizer step before each
            for _ in range(step):
                self.scheduler.step()


def _choice(component: Component) -> dict[str, Any]:
    return {"target": component.target, "params": _json(component.params, "configuration")}


def _json(value: Any, key: str) -> Any:
    """As JSON would read it back. Raises UserCodeError."""
    try:
        return json.loads(json.dumps(value, default=_number))
    except (TypeError, ValueError) as error:
        raise UserCodeError(
            f"the {key}'s state cannot be written as JSON",
            where=key,
            given=str(error),
            expected="numbers, text, lists and mappings",
            next=f"choose another {key}, or give its class a state_dict of such values",
        ) from error


def _number(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}"[:200])


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON made lists of the tuples that optimizers keep, such as betas."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
