"""Everything of the training state that is no tensor, as the JSON that a checkpoint and the ranks of a generation hand on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import Tensor

from launcher.config.schema import Component
from launcher.core.errors import CheckpointCorrupt, UserCodeError
from launcher.core.types import Json, JsonObject


@dataclass(frozen=True)
class GroupDocument:
    """One of an optimizer's groups of parameters."""

    parameters: list[str]
    """Their names."""
    settings: dict[str, object]
    """Hyper-parameters."""


@dataclass(frozen=True)
class OptimizerDocument:
    """What an optimizer holds besides tensors."""

    choice: Component
    """What the configuration said."""
    scalars: dict[str, dict[str, object]]
    """What the optimizer keeps of each parameter besides tensors, by the parameter's name."""
    groups: list[GroupDocument]


@dataclass(frozen=True)
class SchedulerDocument:
    """What a scheduler holds."""

    choice: Component
    """What the configuration said, with the number of steps put in."""
    state: dict[str, object]


@dataclass(frozen=True)
class StateDocument:
    """What a training state holds besides tensors."""

    step: int
    """Steps applied."""
    optimizer: OptimizerDocument
    scheduler: SchedulerDocument | None
    trained: list[str]
    """Names of the parameters that are trained; the others are frozen."""
    buffers: list[str]
    """Names of the buffers that change while training."""
    repeated: list[str]
    """Names of the parameters that get their gradient in several parts in one backward pass."""
    attributes: dict[str, bool | int | float | None]
    """Plain numbers that modules keep as attributes and change while training, by `module.name`; None: there is no such attribute."""

    def to_json(self) -> JsonObject:
        """A number in it may be infinite, which strict JSON has not."""
        document: JsonObject = msgspec.to_builtins(self)
        return document

    @classmethod
    def from_json(cls, document: Json) -> StateDocument:
        """What `to_json` made. Raises CheckpointCorrupt."""
        try:
            return msgspec.convert(document, cls)
        except msgspec.ValidationError as error:
            raise damaged(error) from error


def damaged(error: Exception) -> CheckpointCorrupt:
    """The error for a document that is not what `to_json` makes, or that an optimizer or scheduler refuses."""
    return CheckpointCorrupt("the state of a checkpoint is damaged", given=f"{type(error).__name__}: {error}")


def chosen(component: Component) -> Component:
    """A choice of the configuration as JSON reads it back, to compare it with one that was saved."""
    return Component(target=component.target, params=through_json(component.params, "configuration"))


def through_json(value: object, key: str) -> Any:
    """As JSON would read it back; a tensor of one number becomes that number. Raises UserCodeError, naming the `key`."""
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


def with_types_of(present: object, saved: object) -> Any:
    """What was saved, with the types that JSON does not know taken from `present`: tuples, counters, mappings with numbers for keys."""
    if isinstance(present, Mapping) and isinstance(saved, Mapping):
        keys = {json.dumps(key).strip('"'): key for key in present}
        values = {keys.get(key, key): with_types_of(present.get(keys.get(key, key)), value) for key, value in saved.items()}
        return Counter(values) if isinstance(present, Counter) else values
    if isinstance(present, (list, tuple)) and isinstance(saved, list):
        like = present if len(present) == len(saved) else [None] * len(saved)
        return type(present)(with_types_of(other, value) for value, other in zip(saved, like, strict=True))
    return saved


def with_tuples(group: Mapping[str, object]) -> dict[str, object]:
    """JSON made lists of the tuples that optimizers keep, such as betas."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}


def _number(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}"[:200])
