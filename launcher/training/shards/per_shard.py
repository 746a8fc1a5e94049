"""BatchNorm and Dropout computed for each logical shard, several shards in one forward pass.

Samples of a fused pass are interleaved: sample j of its v-th shard is row j x width + v. Then the rows of a tensor
(samples x width, channels, ...) are, without a copy, those of (samples, width x channels, ...), and one ordinary batch
normalisation over that has its statistics per shard. Running statistics are scratch until the step is applied: every
shard starts from the same ones, and the step's are the mean over all shards' updates.

Layers of exactly torch's own types are computed here; a subclass stays as its author wrote it. So do layers in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from launcher.core.errors import UserCodeError
from launcher.training.shards.random_tape import HALF_RANGE, RandomTapes

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS: dict[type[nn.Module], int | None] = {nn.Dropout: None, nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}
"""Layer types and, where whole channels are dropped, the dimensions of their input."""


class NotPerShard(Exception):
    """A layer's input has no row for each sample, so that its shards cannot be told apart in a fused pass."""


class PerShardLayers:
    """The layers of one model that are computed per shard. `forward` wraps each forward pass of training."""

    def __init__(self, model: nn.Module, *, seed: int, micro_batch_size: int, device: str) -> None:
        """From now on these layers of the model compute per shard. Raises UserCodeError for one that cannot."""
        self.inside = False
        """Whether one of these layers computes at this moment."""
        self._micro = micro_batch_size
        self._tapes = RandomTapes(seed, device)
        self._shards: range | None = None
        norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and type(layer) in BATCH_NORMS]
        self.statistics = RunningStatistics(norms)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.SyncBatchNorm):
                raise UserCodeError(
                    "SyncBatchNorm is not supported: statistics are per shard, whatever the number of workers",
                    where=f"model, layer {name}",
                    expected="BatchNorm, with trainer.micro_batch_size as the samples that share statistics",
                )
            if isinstance(layer, _BatchNorm) and type(layer) in BATCH_NORMS:
                layer.forward = partial(self._batch_norm, layer)  # type: ignore[method-assign] # of this instance alone
            elif isinstance(layer, _DropoutNd) and type(layer) in DROPOUTS:
                layer.forward = partial(self._dropout, layer)

    @contextmanager
    def forward(self, step: int, shards: range) -> Iterator[None]:
        """The forward pass of these shards of a step. Raises NotPerShard inside, where a layer cannot tell fused shards apart."""
        self._shards = shards
        self._tapes.rewind(step, shards)
        self.statistics.begin_forward(len(shards))
        try:
            yield
            self.statistics.end_forward()
        finally:
            self._shards = None
            self.inside = False

    def _rows(self, x: Tensor) -> tuple[int, int]:
        """(samples of a shard, shards): a single shard may have any number of rows, for example a row a token."""
        assert self._shards is not None
        width = len(self._shards)
        if width > 1 and len(x) != width * self._micro:
            raise NotPerShard(f"a layer's input has {len(x)} rows for {width * self._micro} samples")
        return len(x) // width, width

    def _batch_norm(self, layer: _BatchNorm, x: Tensor) -> Tensor:
        if self._shards is None or not layer.training:
            return type(layer).forward(layer, x)
        layer._check_input_dim(x)  # type: ignore[no-untyped-call] # untyped in torch
        rows, width = self._rows(x)
        self.inside = True
        mean, variance, momentum = self.statistics.scratch(layer)
        weight: Tensor | None = layer.weight
        bias: Tensor | None = layer.bias
        if width > 1:
            weight = None if weight is None else weight.repeat(width)
            bias = None if bias is None else bias.repeat(width)
        y = functional.batch_norm(
            x.reshape(rows, width * x.shape[1], *x.shape[2:]), mean, variance, weight, bias, True, momentum, layer.eps
        )
        self.inside = False
        return y.reshape(x.shape)

    def _dropout(self, layer: _DropoutNd, x: Tensor) -> Tensor:
        dimensions = DROPOUTS[type(layer)]
        if self._shards is None or not layer.training or (dimensions is not None and x.dim() != dimensions):
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        if layer.p == 0.0:
            return x
        rows, width = self._rows(x)
        self.inside = True
        shape = x.shape[1:] if dimensions is None else (x.shape[1], *(1 for _ in x.shape[2:]))
        numbers = self._tapes.take(rows * shape.numel() if isinstance(shape, torch.Size) else rows * x.shape[1])
        threshold = round(layer.p * 2 * HALF_RANGE) - HALF_RANGE
        # int16 holds no number above the largest threshold, which is that of p = 1
        kept = numbers >= threshold if threshold < HALF_RANGE else torch.zeros_like(numbers, dtype=torch.bool)
        # brought into the order of the rows while it is one byte a number
        kept = kept.view(width, rows, *shape).transpose(0, 1).reshape(len(x), *shape)
        y = x * kept.to(x.dtype).mul_(1.0 / (1.0 - layer.p) if layer.p < 1.0 else 0.0)
        self.inside = False
        return y


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


class RunningStatistics:
    """Running means and variances of BatchNorm layers during a step: scratch, one copy a shard, summed over the forward passes.

    Layers with equally many channels are kept in one tensor (layers, 2, width, channels), so that a step costs few operations.
    """

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self._tracked = [layer for layer in layers if _tracks(layer)]
        by_kind: dict[tuple[int, torch.dtype], list[TrackingNorm]] = {}
        for layer in self._tracked:
            by_kind.setdefault((layer.num_features, layer.running_mean.dtype), []).append(layer)
        self._groups = list(by_kind.values())
        self._places: dict[object, tuple[int, int]] = {}
        """Of each layer: its group, and its index there."""
        for group, members in enumerate(self._groups):
            self._places |= {layer: (group, index) for index, layer in enumerate(members)}
        self._starts: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._scratch: list[Tensor] = []
        self._calls: dict[object, int] = dict.fromkeys(self._tracked, 0)
        """How often each layer was called in this forward pass."""

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
        self._calls = dict.fromkeys(self._calls, 0)

    def scratch(self, layer: _BatchNorm) -> tuple[Tensor | None, Tensor | None, float]:
        """Running mean and variance for all shards of the pass, (width x channels,) each, and the weight of an update."""
        if layer not in self._places:
            return None, None, layer.momentum if layer.momentum is not None else 0.0
        group, index = self._places[layer]
        self._calls[layer] += 1
        momentum = layer.momentum
        if momentum is None:
            momentum = 1.0 / (int(self._groups[group][index].num_batches_tracked) + self._calls[layer])
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
        for members, total in zip(self._groups, sums, strict=True):
            means = (total / shards).unbind(0)
            torch._foreach_copy_([layer.running_mean for layer in members], [mean[0] for mean in means])
            torch._foreach_copy_([layer.running_var for layer in members], [mean[1] for mean in means])
        called: dict[int, list[Tensor]] = {}
        for layer in self._tracked:
            called.setdefault(self._calls[layer], []).append(layer.num_batches_tracked)
        for calls, counts in called.items():
            if calls:
                torch._foreach_add_(counts, calls)
