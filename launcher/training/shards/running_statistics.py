"""Running means and variances of BatchNorm layers during a step: scratch, one copy a shard, summed over the forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeGuard

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class TrackingNorm(Protocol):
    """A BatchNorm layer that keeps running statistics."""

    num_features: int
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...


def _tracks(layer: _BatchNorm) -> TypeGuard[TrackingNorm]:
    return layer.running_mean is not None


Place = tuple[int, int]
"""Of a layer: its group, and its index there."""


class RunningStatistics:
    """Layers with equally many channels are kept in one tensor (layers, 2, width, channels), so that a step costs few operations."""

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self._tracked = [layer for layer in layers if _tracks(layer)]
        by_kind: dict[tuple[int, torch.dtype], list[TrackingNorm]] = {}
        for layer in self._tracked:
            by_kind.setdefault((layer.num_features, layer.running_mean.dtype), []).append(layer)
        self._groups = list(by_kind.values())
        self.places: dict[object, Place] = {}
        """Of the layers that keep running statistics."""
        for group, members in enumerate(self._groups):
            self.places |= {layer: (group, index) for index, layer in enumerate(members)}
        self._starts: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._scratch: list[Tensor] = []
        self._calls = [[0] * len(members) for members in self._groups]
        """How often each layer was called in this forward pass."""
        self._compiled_calls = [members[0].num_batches_tracked.new_zeros(len(members)) for members in self._groups]
        """The same of calls inside of a compiled function, which would be compiled again for each number that it sees in Python."""

    @property
    def buffers(self) -> set[int]:
        """ids of the tensors that are kept here."""
        return {id(buffer) for layer in self._tracked for buffer in layer.buffers(recurse=False)}

    def begin_step(self) -> None:
        """Remember the statistics from which every shard of the step starts."""
        with torch.no_grad():
            self._starts = [
                torch.stack([torch.stack([layer.running_mean, layer.running_var]) for layer in members]) for members in self._groups
            ]
            self._sums = [torch.zeros_like(start) for start in self._starts]
            self._scratch = []

    def clear_sums(self) -> None:
        """Sum from here on, within the step."""
        for total in self._sums:
            total.zero_()

    def begin_forward(self, width: int) -> None:
        """Make a scratch copy for each of the `width` shards of a forward pass."""
        self._scratch = [start.unsqueeze(2).repeat(1, 1, width, 1) for start in self._starts]
        for calls, compiled in zip(self._calls, self._compiled_calls, strict=True):
            calls[:] = [0] * len(calls)
            compiled.zero_()

    def scratch(self, place: Place, *, again: bool) -> tuple[Tensor, Tensor, float]:
        """For one call of a layer: running mean and variance for all shards of the pass, (width x channels,) each, and the weight of an update.

        again: what was computed before is computed again, and leaves no trace.
        """
        group, index = place
        if again:
            mean, variance = self._scratch[group][index].flatten(1).clone()
            return mean, variance, 0.0
        if torch.compiler.is_compiling():
            self._compiled_calls[group][index].add_(1)
        else:
            self._calls[group][index] += 1
        layer = self._groups[group][index]
        momentum = layer.momentum
        if momentum is None:
            momentum = 1.0 / (int(layer.num_batches_tracked) + self._calls_of(place))
        mean, variance = self._scratch[group][index].flatten(1)
        return mean, variance, momentum

    def end_forward(self) -> None:
        """Add the scratch copies to the sums."""
        for total, scratch in zip(self._sums, self._scratch, strict=True):
            total += scratch.sum(2)

    def sums(self) -> list[Tensor]:
        """Sums over this rank's shards, or those since `clear_sums`; to be added up over all shards and given to `apply`."""
        return self._sums

    def apply(self, sums: list[Tensor], shards: int) -> None:
        """Take the mean over all shards of the step as the new running statistics."""
        for group, (members, total) in enumerate(zip(self._groups, sums, strict=True)):
            means = (total / shards).unbind(0)
            torch._foreach_copy_([layer.running_mean for layer in members], [mean[0] for mean in means])
            torch._foreach_copy_([layer.running_var for layer in members], [mean[1] for mean in means])
            counts = [layer.num_batches_tracked for layer in members]
            if any(self._calls[group]):
                torch._foreach_add_(counts, self._calls[group])
            torch._foreach_add_(counts, list(self._compiled_calls[group].unbind()))

    def _calls_of(self, place: Place) -> int:
        group, index = place
        return self._calls[group][index] + int(self._compiled_calls[group][index])
