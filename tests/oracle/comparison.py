"""The state that training leaves, tensor by tensor, beside that of a plain loop; how far they may be apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DOUBLE = 1e-9
"""Of the largest number of a tensor, in double precision."""
NOISE = 32.0
"""In lower precision: how many times what rounding alone changed."""


class Difference(AssertionError):
    """What training left is not what the plain loop leaves."""


@dataclass(frozen=True)
class State:
    """All that a training leaves."""

    tensors: dict[str, Tensor]
    values: dict[str, object]


Scalars = (bool, int, float, str, type(None))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Parameters, buffers and plain attributes of the model; what the optimizer keeps of each parameter, and its settings for it."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        tensors[f"parameter {name}"] = parameter.detach().clone()
        values[f"requires_grad of {name}"] = parameter.requires_grad
        for key, value in {**optimizer.state.get(parameter, {}), **_settings(groups.get(parameter, {}))}.items():
            label = f"optimizer's {key} of {name}"
            if isinstance(value, Tensor):
                tensors[label] = value.detach().clone()
            else:
                values[label] = value
    tensors |= {f"buffer {name}": buffer.detach().clone() for name, buffer in model.named_buffers()}
    for name, module in model.named_modules():
        values |= {f"attribute {name}.{key}": value for key, value in vars(module).items() if isinstance(value, Scalars) and key[0] != "_"}
    values.pop("attribute .recompute", None)
    return State(tensors, {name: value for name, value in values.items() if not name.endswith(".recompute")})


def _settings(group: Mapping[str, Any]) -> dict[str, object]:
    return {key: value for key, value in group.items() if isinstance(value, (*Scalars, tuple)) and key != "params"}


def same_bits(one: State, other: State) -> str:
    """The first name under which two states differ at all; "" where there is none."""
    for name in one.tensors.keys() | other.tensors.keys():
        a, b = one.tensors.get(name), other.tensors.get(name)
        if a is None or b is None or not torch.equal(a, b):
            return name
    return next((name for name in one.values.keys() | other.values.keys() if one.values.get(name) != other.values.get(name)), "")


def compare(found: State, wanted: State, noise: Mapping[str, float] | None, floor: float) -> float:
    """The largest difference, as a part of what is allowed. Raises Difference where it is more than that.

    noise: what rounding alone changes in each tensor, None in double precision; floor: what is allowed in any case, as a part of the
    tensor's largest number.
    """
    complaints = [f"{name}: found only in {'training' if name in found.tensors else 'the plain loop'}" for name in _apart(found, wanted)]
    for name, value in wanted.values.items():
        if name in found.values and not _equal(found.values[name], value):
            complaints.append(f"{name}: {found.values[name]!r}, in the plain loop {value!r}")
    largest = 0.0
    for name, tensor in wanted.tensors.items():
        other = found.tensors.get(name)
        if other is None:
            continue
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            complaints.append(f"{name}: {other.dtype} {tuple(other.shape)}, in the plain loop {tensor.dtype} {tuple(tensor.shape)}")
            continue
        if not tensor.numel():
            continue
        distance = float((other.double() - tensor.double()).abs().max())
        allowed = DOUBLE * _size(tensor) + 1e-14 if noise is None else NOISE * noise.get(name, 0.0) + floor * _size(tensor) + 1e-9
        largest = max(largest, distance / allowed)
        if not distance <= allowed:
            complaints.append(f"{name}: apart by {distance:.3g}, allowed {allowed:.3g}, largest number {_size(tensor):.3g}")
    if complaints:
        raise Difference("\n".join(complaints[:6] + [f"and {len(complaints) - 6} more"] * (len(complaints) > 6)))
    return largest


def distances(one: State, other: State) -> dict[str, float]:
    """Of each tensor that both have: the largest difference of two numbers in it."""
    both = one.tensors.keys() & other.tensors.keys()
    return {
        name: float((one.tensors[name].double() - other.tensors[name].double()).abs().max()) for name in both if one.tensors[name].numel()
    }


def _apart(found: State, wanted: State) -> list[str]:
    """Names that only one of them has."""
    return sorted(found.tensors.keys() ^ wanted.tensors.keys())


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other
