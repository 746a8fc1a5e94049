"""What a checkpoint holds, and how it is taken back: tensors by name, everything else as JSON.

Tensors: model.NAME for parameters and buffers (of those that are not persistent, the ones that change while training),
optimizer.PARAMETER.KEY for what the optimizer keeps as tensors.
JSON: step; the optimizer's other state and, for each group, its parameters and hyper-parameters; the scheduler's state; which parameters are
trained; plain numbers among the attributes of the model's modules that change while training.
Both are kept beside the configuration that made them: what the present configuration says wins where the two differ.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from launcher.config.schema import Component
from launcher.core.errors import CheckpointCorrupt, ConfigError, UserCodeError
from launcher.training.shards.tracked_attributes import ABSENT, Absent, AttributeName, Number, put, value_at
from launcher.training.state.document import (
    GroupDocument,
    OptimizerDocument,
    SchedulerDocument,
    StateDocument,
    chosen,
    damaged,
    through_json,
    with_tuples,
    with_types_of,
)

MODEL = "model."
OPTIMIZER = "optimizer."
OWN_OF_TORCH = {"params", "param_names"}
"""Keys of an optimizer's group that are no hyper-parameters."""


class Scheduler(Protocol):
    """What training needs of a scheduler; those of torch.optim.lr_scheduler have it."""

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class TrainState:
    """Model, optimizer and scheduler of one worker."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler | None,
        optimizer_choice: Component,
        scheduler_choice: Component | None,
    ) -> None:
        """The choices are what the configuration says, with `total_steps` already put in."""
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._optimizer_choice = chosen(optimizer_choice)
        self._scheduler_choice = None if scheduler_choice is None else chosen(scheduler_choice)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._check_parameters()
        self.buffers: list[str] = []
        """Names of those that change while training."""
        self.attributes: list[AttributeName] = []
        """Those that change while training."""
        self.repeated: list[nn.Parameter] = []
        """Those that get their gradient in several parts in one backward pass."""
        self.prepared: dict[str, Tensor] = {}
        """Memory for what the optimizer will keep, by name, while it keeps nothing yet."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name; not copies."""
        return {MODEL + name: value for name, value in self._model_tensors().items()} | self._kept_by(self.optimizer)

    def track(self, buffers: Sequence[str], attributes: Sequence[AttributeName], repeated: Sequence[nn.Parameter]) -> None:
        """These buffers and numbers change while training, so they belong to the state, whether a buffer is persistent or not.

        repeated: parameters that get their gradient in several parts. What was found is state as well, because all ranks exchange the same.
        """
        self.buffers, self.attributes, self.repeated = [*buffers], [*attributes], [*repeated]

    def prepare_to_receive(self) -> None:
        """Allocate, and touch, what the optimizer will keep: most optimizers do that in their first step only.

        For a worker that is about to be given the state by others: its memory is there before they have to wait for it. The state
        itself does not change; what is found out comes from one step of a copy of the optimizer, so memory for one more copy of the
        parameters and for their gradients is needed meanwhile.
        """
        if self.optimizer.state:
            return
        trial = copy.deepcopy(self.optimizer)
        for group in trial.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        trial.step()
        self.prepared = self._kept_by(trial)

    def document(self, step: int) -> StateDocument:
        """Everything that is no tensor. Raises UserCodeError where it is no JSON."""
        names, packed = self._names_of(self.optimizer), self.optimizer.state_dict()
        scalars = {
            names[index]: {key: value for key, value in kept.items() if not isinstance(value, Tensor)}
            for index, kept in packed["state"].items()
        }
        groups = [
            GroupDocument(
                [names[index] for index in group["params"]],
                through_json({key: value for key, value in group.items() if key not in OWN_OF_TORCH}, "optimizer"),
            )
            for group in packed["param_groups"]
        ]
        scheduler = None
        if self.scheduler is not None and self._scheduler_choice is not None:
            scheduler = SchedulerDocument(self._scheduler_choice, through_json(self.scheduler.state_dict(), "scheduler"))
        return StateDocument(
            step,
            OptimizerDocument(self._optimizer_choice, through_json(scalars, "optimizer"), groups),
            scheduler,
            [name for parameter, name in self._names.items() if parameter.requires_grad],
            [*self.buffers],
            [self._names[parameter] for parameter in self.repeated],
            {str(at): _without_absent(value_at(self.model.get_submodule(at.module), at.name)) for at in self.attributes},
        )

    def load_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Parameters and persistent buffers. Raises CheckpointCorrupt when names or shapes are not those of the model."""
        self._copy_into_model(self._fitting(tensors))

    def load(self, tensors: Mapping[str, Tensor], document: StateDocument) -> None:
        """The whole state. Raises CheckpointCorrupt or ConfigError where it does not fit.

        What the optimizer keeps is taken over as it is, not copied, where its device allows. Whether it fits is checked first.
        """
        fitting = self._fitting(tensors)
        self._check_optimizer(document.optimizer)
        saved = document.scheduler
        groups = self._own_groups(document.optimizer.groups)
        same_schedule = (
            groups is not None
            and document.optimizer.choice == self._optimizer_choice
            and (saved and saved.choice) == self._scheduler_choice
        )
        try:
            self._copy_into_model(fitting)
            self._load_numbers(document)
            self._load_optimizer(tensors, document.optimizer, groups if same_schedule else None)
            if self.scheduler is None:
                return
            if same_schedule and saved is not None:
                self.scheduler.load_state_dict(with_types_of(self.scheduler.state_dict(), saved.state))
            else:
                self._replay_schedule(self.scheduler, document.step)
        except (KeyError, TypeError, IndexError) as error:
            raise damaged(error) from error

    def _fitting(self, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The model's tensors, each with the given one. Raises CheckpointCorrupt when names or shapes are not those of the model."""
        given = {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)}
        own = self._model_tensors()
        possible = own | dict(self.model.named_buffers())
        for name in self.model.state_dict().keys() | given.keys():
            shapes = [tuple(values[name].shape) if name in values else "nothing" for values in (given, possible)]
            if shapes[0] != shapes[1]:
                raise CheckpointCorrupt(
                    "the checkpoint does not fit the model",
                    where=f"model.{name}",
                    given=f"{shapes[0]} in the checkpoint",
                    expected=f"{shapes[1]}, as the model has it",
                    next="use the model that the checkpoint was made with",
                )
        return [(possible[name], value) for name, value in given.items()]

    @torch.no_grad()
    def _copy_into_model(self, fitting: list[tuple[Tensor, Tensor]]) -> None:
        for own, given in fitting:
            if not _same_memory(own, given):
                own.copy_(given)

    def _load_numbers(self, document: StateDocument) -> None:
        trained = set(document.trained)
        for parameter, name in self._names.items():
            parameter.requires_grad_(name in trained)
        self.buffers = [*document.buffers]
        self.repeated = [parameter for parameter, name in self._names.items() if name in document.repeated]
        self.attributes = [AttributeName(*at.rpartition(".")[::2]) for at in document.attributes]
        for at, value in zip(self.attributes, document.attributes.values(), strict=True):
            put(self.model.get_submodule(at.module), at.name, ABSENT if value is None else value)

    def _model_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = self.model.state_dict()
        present = dict(self.model.named_buffers())
        return tensors | {name: present[name] for name in self.buffers if name not in tensors}

    def _names_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Of its parameters, in the order in which its state counts them."""
        own = {
            id(parameter): self._names[mine]
            for mine, parameter in zip(self._in_groups(self.optimizer), self._in_groups(optimizer), strict=True)
        }
        return [own[id(parameter)] for parameter in self._in_groups(optimizer)]

    @staticmethod
    def _in_groups(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def _check_parameters(self) -> None:
        """Raises UserCodeError."""
        if any(parameter not in self._names for parameter in self._in_groups(self.optimizer)):
            raise UserCodeError(
                "the optimizer has a parameter that is none of the model's",
                where="optimizer._target_",
                given=self._optimizer_choice.target,
                expected="an optimizer over the parameters that it is given",
            )
        extra = [name for name, value in self.model.state_dict().items() if not isinstance(value, Tensor)]
        if extra:
            raise UserCodeError(
                "the model has state that is no tensor",
                where="model._target_",
                given=", ".join(extra),
                expected="parameters and buffers",
                next="keep it in a buffer, or as a plain number in an attribute",
            )

    def _kept_by(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        names = self._names_of(optimizer)
        return {
            f"{OPTIMIZER}{names[index]}.{key}": value
            for index, kept in optimizer.state_dict()["state"].items()
            for key, value in kept.items()
            if isinstance(value, Tensor)
        }

    def _check_optimizer(self, saved: OptimizerDocument) -> None:
        if saved.choice.target != self._optimizer_choice.target:
            raise ConfigError(
                "the checkpoint was made with another optimizer",
                where="optimizer._target_",
                given=self._optimizer_choice.target,
                expected=saved.choice.target,
                next="keep the optimizer, or begin a new run with checkpoint.init_from",
            )

    def _own_groups(self, saved: Sequence[GroupDocument]) -> list[GroupDocument] | None:
        """The saved groups in the order of the present ones; None where parameters are grouped in another way now."""
        by_parameters = {frozenset(group.parameters): group for group in saved}
        found = [
            by_parameters.get(frozenset(self._names[parameter] for parameter in group["params"])) for group in self.optimizer.param_groups
        ]
        groups = [group for group in found if group is not None]
        return groups if len(groups) == len(found) == len(saved) else None

    def _load_optimizer(self, tensors: Mapping[str, Tensor], saved: OptimizerDocument, groups: Sequence[GroupDocument] | None) -> None:
        """`groups`: those whose hyper-parameters are taken; None: what the configuration says stays."""
        kept: dict[str, dict[str, object]] = {name: dict(values) for name, values in saved.scalars.items()}
        for full, value in tensors.items():
            if full.startswith(OPTIMIZER):
                name, _, key = full.removeprefix(OPTIMIZER).rpartition(".")
                kept.setdefault(name, {})[key] = value
        state = {index: kept[name] for index, name in enumerate(self._names_of(self.optimizer)) if kept.get(name)}
        present = self.optimizer.state_dict()["param_groups"]
        if groups is not None:
            present = [{**group, **with_tuples(old.settings)} for group, old in zip(present, groups, strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": present})
        self._keep_types(state)
        self.prepared = {}

    def _keep_types(self, state: Mapping[int, Mapping[str, object]]) -> None:
        """torch gives what an optimizer keeps the type of its parameter: a sum in fp32 of a parameter in bf16 would be rounded."""
        for index, kept in self.optimizer.state_dict()["state"].items():
            for key, value in state.get(index, {}).items():
                if isinstance(value, Tensor) and kept[key].dtype != value.dtype:
                    kept[key] = value.to(kept[key].device)

    @staticmethod
    def _replay_schedule(scheduler: Scheduler, step: int) -> None:
        """The configuration has another schedule than the checkpoint: be where it would be had it been there from the start."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects an optimizer step before each
            for _ in range(step):
                scheduler.step()


def _without_absent(value: Number) -> bool | int | float | None:
    return None if isinstance(value, Absent) else value


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (one.device, one.data_ptr(), one.dtype, one.shape, one.stride()) == (
        other.device,
        other.data_ptr(),
        other.dtype,
        other.shape,
        other.stride(),
    )
