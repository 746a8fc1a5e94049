"""Which parameters are trained: a model may freeze and thaw its own in forward.

As with whole numbers in buffers: every forward pass of a step starts with the step's flags, and the new ones are those after shard 0. So all
ranks train the same parameters from the same step on, whatever joined or left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TrainableFlags:
    """`requires_grad` of all parameters of a model."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._starts = self.now()
        self._written: dict[tuple[bool, ...], Tensor] = {}
        self._nothing = torch.zeros(len(self._parameters), device=self._parameters[0].device)
        self._sums = self._nothing

    def now(self) -> tuple[bool, ...]:
        return tuple([parameter.requires_grad for parameter in self._parameters])

    def begin_step(self) -> None:
        """Remember the flags from which every shard of the step starts."""
        self._starts = self.now()
        self._sums = self._nothing

    def clear_sums(self) -> None:
        """Sum from here on, within the step."""
        self._sums = self._nothing

    def begin_forward(self) -> None:
        """Give the model the flags from which the step starts."""
        self.roll_back()

    def end_forward(self, shards: range) -> None:
        """Take the flags, where shard 0 was among those computed."""
        if 0 in shards:
            flags = self.now()
            if flags not in self._written:
                self._written = {flags: self._nothing.new_tensor([float(flag) for flag in flags])}
            self._sums = self._written[flags]

    def sums(self) -> list[Tensor]:
        """What this rank adds to the step's last collective, (parameters,), or what came since `clear_sums`."""
        return [self._sums]

    def apply(self, flags: Sequence[bool]) -> None:
        """Take the new flags."""
        for parameter, now, wanted in zip(self._parameters, self.now(), flags, strict=True):
            if now != wanted:
                parameter.requires_grad_(wanted)

    def roll_back(self) -> None:
        """Give the model the flags before the step."""
        if self.now() != self._starts:
            self.apply(self._starts)
