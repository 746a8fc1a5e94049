"""Buffers that a model's own layers change while training: the step's value is the mean over the shards' updates from one start.

Whole numbers (and bool) come from shard 0. They are summed as four 16-bit digits each: a float32 sum over ranks holds
these exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIGITS = 4
_DIGIT = 1 << 16


class TrackedBuffers:
    """The named buffers of a model: what is in them between `begin_step` and `apply` is of one forward pass alone."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self._places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
        self._starts: list[Tensor] = []
        self._sums: list[Tensor] = []

    def begin_step(self) -> None:
        """Remember the values from which every shard of the step starts."""
        self._starts = [self._value(place).detach().clone() for place in self._places]
        self._sums = [_zeros(start) for start in self._starts]

    def clear_sums(self) -> None:
        """Sum from here on, within the step."""
        for total in self._sums:
            total.zero_()

    def begin_forward(self) -> None:
        """Give the model the values from which the step starts."""
        self.roll_back()

    def end_forward(self, shards: range) -> None:
        """Add the change that a forward pass of these shards made to the sums."""
        for place, start, total in zip(self._places, self._starts, self._sums, strict=True):
            value = self._value(place).detach()
            if start.is_floating_point():
                total += (value - start).flatten() * len(shards)
            elif 0 in shards:
                total += _digits(value)

    def sums(self) -> list[Tensor]:
        """What this rank adds to the step's last collective, or what came since `clear_sums`."""
        return self._sums

    @torch.no_grad()
    def apply(self, sums: list[Tensor], shards: int) -> None:
        """Take the mean over all shards of the step as the new values; `sums` as of `sums()`, added up over the ranks."""
        for (module, name), start, total in zip(self._places, self._starts, sums, strict=True):
            value = start + (total / shards).view(start.shape).to(start.dtype) if start.is_floating_point() else _whole(total, start)
            _write(module, name, value)

    @torch.no_grad()
    def roll_back(self) -> None:
        """Give the model the values before the step."""
        for (module, name), start in zip(self._places, self._starts, strict=True):
            _write(module, name, start)

    def _value(self, place: tuple[nn.Module, str]) -> Tensor:
        value = place[0]._buffers[place[1]]
        assert value is not None, "a buffer that changed in the trial step is there"
        return value


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    buffer = module._buffers[name]
    if buffer is not None and buffer.shape == value.shape:
        buffer.copy_(value)
    else:
        module._buffers[name] = value.clone()


def _zeros(start: Tensor) -> Tensor:
    if not start.is_floating_point():
        return torch.zeros(start.numel() * DIGITS, device=start.device)
    return torch.zeros(start.numel(), device=start.device, dtype=torch.promote_types(start.dtype, torch.float32))


def _digits(value: Tensor) -> Tensor:
    number = value.flatten().to(torch.int64)
    return torch.cat([((number >> (16 * place)) & (_DIGIT - 1)).float() for place in range(DIGITS)])


def _whole(digits: Tensor, like: Tensor) -> Tensor:
    number = torch.zeros(like.numel(), dtype=torch.int64, device=like.device)
    for place, digit in enumerate(digits.view(DIGITS, -1)):
        number |= digit.to(torch.int64) << (16 * place)
    return number.view(like.shape).to(like.dtype)
