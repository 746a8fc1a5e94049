"""Buffers that a model's own layers change while training: the step's value is the mean over the shards' updates from one start.

Whole numbers (and bool) come from shard 0. They are summed as four 16-bit digits each: a float32 sum over ranks holds
these exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

DIGITS = 4
_DIGIT = 1 << 16


Place = tuple[nn.Module, str]
"""A module and the name of its buffer."""


@dataclass
class _Watched:
    """A buffer that has not changed in a forward pass yet."""

    place: Place
    tensor: Tensor
    version: int
    """torch counts what is written into a tensor."""
    value: Tensor
    """A copy."""

    @classmethod
    def at(cls, place: Place) -> _Watched:
        tensor = _value(place)
        return cls(place, tensor, tensor._version, tensor.detach().clone())

    @property
    def changed(self) -> bool:
        now = self.place[0]._buffers[self.place[1]]
        if now is self.tensor:
            return now._version != self.version
        # One of another shape is a cache, which each rank may have as it needs it.
        return now is not None and now.shape == self.tensor.shape and now.dtype == self.tensor.dtype


class TrackedBuffers:
    """The named buffers of a model: what is in them between `begin_step` and `apply` is of one forward pass alone.

    Those that change are tracked. The others are watched: which ones have begun to change is said at the end of a step, to all ranks alike,
    and the step is computed again with these tracked as well.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, elsewhere: Collection[int] = ()) -> None:
        """`names`: of those that are tracked; `elsewhere`: ids of the buffers that are none of our business."""
        self._model = model
        self.names = [name for name, buffer in model.named_buffers() if id(buffer) not in elsewhere]
        """Of all that are tracked or watched."""
        self._starts: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._begun: set[str] = set()
        """Of the watched ones, those that changed in this step."""
        self.track(names)

    def track(self, names: Collection[str]) -> None:
        """From the next step on these are the ones that are tracked."""
        self.tracked = [name for name in self.names if name in names]
        """Of those that are tracked."""
        self._places = [_place(self._model, name) for name in self.tracked]
        self._watched = {name: _Watched.at(_place(self._model, name)) for name in self.names if name not in names}
        self._starts = []

    def begin_step(self) -> None:
        """Remember the values from which every shard of the step starts."""
        self._begun.clear()
        self._starts = [_value(place).detach().clone() for place in self._places]
        self._sums = [_zeros(start) for start in self._starts]
        for name, watched in self._watched.items():
            if watched.changed:  # by an evaluation, or by a state that was taken over
                self._watched[name] = _Watched.at(watched.place)

    def begun_to_change(self) -> list[float]:
        """1 for each of `names` that is not tracked and changed in a forward pass of this step, else 0."""
        return [float(name in self._begun) for name in self.names]

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
            value = _value(place).detach()
            if start.is_floating_point():
                change = torch.where(torch.isfinite(start), value - start, value)
                total += change.flatten() * len(shards)
            elif 0 in shards:
                total += _digits(value)
        for name, watched in self._watched.items():
            if watched.changed and not torch.equal(_value(watched.place), watched.value):
                self._begun.add(name)

    def sums(self) -> list[Tensor]:
        """What this rank adds to the step's last collective, or what came since `clear_sums`."""
        return self._sums

    @torch.no_grad()
    def apply(self, sums: list[Tensor], shards: int) -> None:
        """Take the mean over all shards of the step as the new values; `sums` as of `sums()`, added up over the ranks."""
        for (module, name), start, total in zip(self._places, self._starts, sums, strict=True):
            put_buffer(module, name, _moved(start, total / shards) if start.is_floating_point() else _whole(total, start))

    @torch.no_grad()
    def roll_back(self) -> None:
        """Give the model the values before the step."""
        for (module, name), start in zip(self._places, self._starts, strict=False):
            put_buffer(module, name, start)
        for key, watched in self._watched.items():
            if watched.changed:
                watched.place[0]._buffers[watched.place[1]] = watched.tensor
                watched.tensor.copy_(watched.value)
                self._watched[key] = replace(watched, version=watched.tensor._version)


def _place(model: nn.Module, path: str) -> Place:
    module, _, name = path.rpartition(".")
    return model.get_submodule(module), name


def _value(place: Place) -> Tensor:
    value = place[0]._buffers[place[1]]
    assert value is not None, "named_buffers gave it"
    return value


def put_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Keep the value there, in the memory that is there where it fits."""
    buffer = module._buffers[name]
    if buffer is None or buffer.shape != value.shape:
        module._buffers[name] = value.clone()
    else:
        buffer.copy_(value)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each of a model's buffers, by name."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def put_back(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Let a model's buffers be those that `buffers_of` gave. Few have changed, and one that shares its memory with itself cannot be written."""
    for path, value in buffers.items():
        module, name = _place(model, path)
        buffer = module._buffers[name]
        if buffer is None or not torch.equal(buffer, value):
            put_buffer(module, name, value)


def _moved(start: Tensor, change: Tensor) -> Tensor:
    """Where it starts at no finite number, the change is the new value."""
    return torch.where(torch.isfinite(start), start, 0) + change.view(start.shape).to(start.dtype)


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
