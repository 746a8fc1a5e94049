"""Plain numbers that a model's modules keep as attributes and change in forward, such as a count of calls.

As with whole numbers in buffers: every forward pass of a step starts from the step's value, and the new one is that after shard 0. So it is
the same on every rank and at every world size, goes into checkpoints, and a newcomer gets it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError


class Absent:
    """In the place of an attribute that is not there (yet)."""


ABSENT = Absent()
Number = bool | int | float | Absent
NOT_STATE = {"training"}
"""Plain numbers of every module that are no state of the training."""
_KINDS: tuple[type, ...] = (bool, int, float, Absent)
_DIGITS = 4
_WIDTH = _DIGITS + 1
"""Each number travels as its type and four 16-bit digits: a float32 sum over ranks, of which one has it, holds these exactly."""


class AttributeName(NamedTuple):
    """Where a number is kept."""

    module: str
    """Path within the model; "" is the model itself."""
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


class TrackedAttributes:
    """What is in them between `begin_step` and `apply` is of one forward pass alone."""

    def __init__(self, model: nn.Module, names: Sequence[AttributeName], *, device: str) -> None:
        self._model = model
        self._device = device
        self.track(names)

    def track(self, names: Sequence[AttributeName]) -> None:
        """From the next step on these are the ones that are tracked."""
        self._places = [(self._model.get_submodule(name.module), name.name) for name in names]
        self._starts: list[Number] = []
        self._sums = [torch.zeros(_WIDTH * len(names), device=self._device)] if names else []

    def begin_step(self) -> None:
        """Remember the values from which every shard of the step starts."""
        if self._places:
            self._starts = [value_at(module, name) for module, name in self._places]
            self.clear_sums()

    def clear_sums(self) -> None:
        """Sum from here on, within the step."""
        self._sums = [torch.zeros_like(total) for total in self._sums]

    def begin_forward(self) -> None:
        """Give the model the values from which the step starts."""
        self.roll_back()

    def end_forward(self, shards: range) -> None:
        """Take the values, where shard 0 was among those computed."""
        if self._places and 0 in shards:
            digits = [digit for module, name in self._places for digit in _written(value_at(module, name))]
            self._sums = [torch.tensor(digits, dtype=torch.float32, device=self._device)]

    def sums(self) -> list[Tensor]:
        """What this rank adds to the step's last collective, or what came since `clear_sums`."""
        return self._sums

    def apply(self, sums: list[Tensor]) -> None:
        """Take the new values; `sums` as of `sums()`, added up over the ranks."""
        for total in sums:
            digits = [int(digit) for digit in total.tolist()]
            for index, (module, name) in enumerate(self._places):
                put(module, name, _read(digits[index * _WIDTH : (index + 1) * _WIDTH]))

    def roll_back(self) -> None:
        """Give the model the values before the step."""
        for (module, name), start in zip(self._places, self._starts, strict=False):
            put(module, name, start)


def value_at(module: nn.Module, name: str) -> Number:
    """What is kept there. Raises UserCodeError where that is no number any more."""
    value = _plain(getattr(module, name, ABSENT))
    if not is_number(value):
        raise UserCodeError(
            "an attribute that was a number is none any more",
            where=f"model, {type(module).__name__}.{name}",
            given=type(value).__name__,
            expected="a number in every forward pass, which other workers and a checkpoint get as well",
            next="keep other things under another name, or in a buffer",
        )
    return value


def numbers_of(model: nn.Module) -> dict[AttributeName, Number]:
    """All plain numbers among the attributes of a model's modules; those of NumPy as Python's own."""
    return {
        AttributeName(path, name): number
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in NOT_STATE and is_number(number := _plain(value))
    }


def put_back(model: nn.Module, numbers: Mapping[AttributeName, Number]) -> None:
    """Let the numbers of a model be those that `numbers_of` gave; what was made since goes away."""
    for at in {**numbers_of(model), **numbers}:
        put(model.get_submodule(at.module), at.name, numbers.get(at, ABSENT))


def put(module: nn.Module, name: str, value: Number) -> None:
    """Keep it there; ABSENT takes away what is there."""
    if not isinstance(value, Absent):
        setattr(module, name, value)
    elif hasattr(module, name):
        delattr(module, name)


def is_number(value: object) -> TypeGuard[Number]:
    """Whether a value can be tracked here: of exactly these types."""
    return type(value) in _KINDS


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _written(value: Number) -> list[int]:
    if isinstance(value, Absent):
        return [_KINDS.index(Absent), *[0] * _DIGITS]
    bits = struct.unpack("<Q", struct.pack("<d", value))[0] if isinstance(value, float) else int(value) & ((1 << 64) - 1)
    return [_KINDS.index(type(value)), *((bits >> (16 * place)) & 0xFFFF for place in range(_DIGITS))]


def _read(digits: list[int]) -> Number:
    kind, *rest = digits
    if _KINDS[kind] is Absent:
        return ABSENT
    bits = sum(digit << (16 * place) for place, digit in enumerate(rest))
    if _KINDS[kind] is float:
        number: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
        return number
    return bool(bits) if _KINDS[kind] is bool else bits - ((bits >> 63) << 64)
