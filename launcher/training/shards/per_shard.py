"""BatchNorm and Dropout computed for each logical shard, several shards in one forward pass.

Samples of a fused pass are interleaved: sample j of its v-th shard is row j x width + v. Then the rows of a tensor
(samples x width, channels, ...) are, without a copy, those of (samples, width x channels, ...), and one ordinary batch
normalisation over that has its statistics per shard. Running statistics are scratch until the step is applied: every
shard starts from the same ones, and the step's are the mean over all shards' updates.

What a backward pass computes again (activation checkpointing) sees the shards, the masks and the batch statistics of the forward pass, and
leaves no trace in the running statistics.

Layers of exactly torch's own types are computed here; a subclass stays as its author wrote it. So do layers in evaluation mode.
Nothing but the number of shards and tensors is visible to torch.compile here: other shards, steps and sizes of the group compile nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from launcher.core.errors import UserCodeError
from launcher.training.shards.dropout_mask import mask_of, shard_keys, threshold
from launcher.training.shards.layer_calls import LayerCalls, computing_again
from launcher.training.shards.running_statistics import Place, RunningStatistics

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS: dict[type[nn.Module], int | None] = {nn.Dropout: None, nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}
"""Layer types and, where whole channels are dropped, the dimensions of their input."""
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the dimensions of a tensor."""


class NotPerShard(Exception):
    """A layer's input has no row for each sample, so that its shards cannot be told apart in a fused pass."""


class Pass:
    """The pass that is computed at this moment.

    Layers get at it through this module, not through themselves: what torch.compile reaches through a model's modules it takes for constant.
    For the same reason the number of shards is the length of a tensor.
    """

    def __init__(self) -> None:
        self.active = False
        """Whether one is computed."""
        self.keys = shard_keys(0, 0, range(1))
        """Of its shards, (shards,), as dropout_mask.py wants them."""
        self.calls = LayerCalls(0)
        """Of the Dropout layers."""
        self.statistics = RunningStatistics([])


NOW = Pass()


class PerShardLayers:
    """The layers of one model that are computed per shard.

    `forward` wraps each forward pass of training; what it says holds for the backward pass too, until the next one or `end_step`.
    """

    def __init__(self, model: nn.Module, *, seed: int, micro_batch_size: int) -> None:
        """From now on these layers of the model compute per shard. Raises UserCodeError for one that cannot."""
        self.inside = False
        """Whether one of these layers computes at this moment."""
        self._micro = micro_batch_size
        self._seed = seed
        norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and type(layer) in BATCH_NORMS]
        self.statistics = RunningStatistics(norms)
        dropouts = 0
        for name, layer in model.named_modules():
            if isinstance(layer, nn.SyncBatchNorm):
                raise UserCodeError(
                    "SyncBatchNorm is not supported: statistics are per shard, whatever the number of workers",
                    where=f"model, layer {name}",
                    expected="BatchNorm, with trainer.micro_batch_size as the samples that share statistics",
                )
            if isinstance(layer, _BatchNorm) and type(layer) in BATCH_NORMS:
                place = self.statistics.places.get(layer)
                layer.forward = partial(self._batch_norm, layer, place)  # type: ignore[method-assign] # of this instance alone
            elif isinstance(layer, _DropoutNd) and type(layer) in DROPOUTS:
                layer.forward = partial(self._dropout, layer, dropouts)
                dropouts += 1
        self._calls = LayerCalls(dropouts)
        self._dropouts = dropouts
        self._no_keys: dict[int, Tensor] = {}
        """By the number of shards: without Dropout a key's value is nobody's business."""

    @contextmanager
    def forward(self, step: int, shards: range) -> Iterator[None]:
        """The forward pass of these shards of a step. Raises NotPerShard inside, where a layer cannot tell fused shards apart."""
        self._calls.begin_forward()
        self.statistics.begin_forward(len(shards))
        NOW.active, NOW.keys = True, self._keys(step, shards)
        NOW.calls, NOW.statistics = self._calls, self.statistics
        try:
            yield
        finally:
            self.inside = False
        self.statistics.end_forward()

    def end_step(self) -> None:
        """No pass is computed any more: the layers are what they were before."""
        NOW.active = False

    def _keys(self, step: int, shards: range) -> Tensor:
        if self._dropouts:
            return shard_keys(self._seed, step, shards)
        keys = self._no_keys.get(len(shards))
        if keys is None:
            keys = self._no_keys[len(shards)] = torch.zeros(len(shards), dtype=torch.int64)
        return keys

    def _rows(self, x: Tensor) -> tuple[int, int]:
        """(rows of each shard, shards): a single shard may have any number of rows, for example a row a token."""
        width = NOW.keys.shape[0]
        if width > 1 and x.shape[0] != width * self._micro:
            raise NotPerShard(f"a layer's input has {x.shape[0]} rows for {width * self._micro} samples")
        return x.shape[0] // width, width

    def _batch_norm(self, layer: _BatchNorm, place: Place | None, x: Tensor) -> Tensor:
        if not NOW.active or not layer.training:
            return type(layer).forward(layer, x)
        layer._check_input_dim(x)  # type: ignore[no-untyped-call] # untyped in torch
        rows, width = self._rows(x)
        self.inside = True
        mean: Tensor | None = None
        variance: Tensor | None = None
        momentum = 0.0
        if place is not None:
            mean, variance, momentum = NOW.statistics.scratch(place, again=computing_again())
        weight: Tensor | None = layer.weight
        bias: Tensor | None = layer.bias
        if width == 1:
            y = functional.batch_norm(x, mean, variance, weight, bias, True, momentum, layer.eps)
        elif _is_channels_last(x):
            y = _batch_norm_channels_last(x.view(rows, width, *x.shape[1:]), mean, variance, weight, bias, momentum, layer.eps)
        else:
            weight = None if weight is None else weight.repeat(width)
            bias = None if bias is None else bias.repeat(width)
            fused = x.reshape(rows, width * x.shape[1], *x.shape[2:])
            y = functional.batch_norm(fused, mean, variance, weight, bias, True, momentum, layer.eps).reshape(x.shape)
        self.inside = False
        return y

    def _dropout(self, layer: _DropoutNd, number: int, x: Tensor) -> Tensor:
        dimensions = DROPOUTS[type(layer)]
        if not NOW.active or not layer.training or (dimensions is not None and x.dim() != dimensions):
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        if layer.p == 0.0:
            return x
        rows, width = self._rows(x)
        self.inside = True
        shape = x.shape[1:] if dimensions is None else (x.shape[1], *(1 for _ in x.shape[2:]))
        count = rows
        for size in shape:
            count *= size
        kept = mask_of(NOW.keys, number, NOW.calls.number(number), count, threshold(layer.p), x)
        kept = kept.view(width, rows, *shape).transpose(0, 1).reshape(x.shape[0], *shape)
        y = (x.mul_(kept) if layer.inplace else x * kept).mul_(1.0 / (1.0 - layer.p) if layer.p < 1.0 else 0.0)
        self.inside = False
        return y


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in CHANNELS_LAST and not x.is_contiguous() and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def _batch_norm_channels_last(
    x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None, momentum: float, eps: float
) -> Tensor:
    """Batch normalisation of `x`, (rows, width, channels, ...), per shard and channel, without leaving its layout: (rows x width, channels, ...).

    torch's own operator has no form for this: shards and channels are not neighbours in memory. Running `mean` and `variance`,
    (width x channels,), are changed in place.
    """
    over = (0, *range(3, x.dim()))
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    batch_variance, batch_mean = torch.var_mean(wide, over, correction=0, keepdim=True)
    y = (wide - batch_mean) * torch.rsqrt(batch_variance + eps)
    along_channels = (-1, *(1 for _ in x.shape[3:]))
    if weight is not None:
        y = y * weight.view(along_channels)
    if bias is not None:
        y = y + bias.view(along_channels)
    if mean is not None and variance is not None:
        with torch.no_grad():
            count = x.numel() // batch_mean.numel()
            mean.lerp_(batch_mean.flatten().to(mean.dtype), momentum)
            variance.lerp_(batch_variance.flatten().to(variance.dtype) * (count / (count - 1)), momentum)
    return y.to(x.dtype).flatten(0, 1)
