"""Summing gradients over the ranks: flat buckets, sent while the last backward pass of the step is still computing.

Buckets follow the parameters in reverse, about the order in which backward passes finish them, and are always sent in that order, so
that all ranks agree. The last one also carries the step's sums (losses, metrics, flags, buffers): when it has arrived, so has the
step. Measured on two CPU processes: ResNet-18 at the pace of DDP; an MLP of one bucket no slower than one reduction afterwards.

What the transport makes of a sum depends on the number of ranks; exact_exchange.py is the exchange for which it does not.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from launcher.training.comm.collective import CollectiveBroken

if TYPE_CHECKING:
    from launcher.training.comm.collective import Collective, Work

FIRST_BUCKET_BYTES = 1 << 20
"""Small, so that sending begins early."""
BUCKET_BYTES = 25 << 20


def dtype_of_sums(parameters: list[nn.Parameter]) -> torch.dtype:
    return torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32


def cut_into_buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Which parameters share a bucket, in the order in which buckets are sent; never a function of what was before."""
    buckets: list[list[nn.Parameter]] = [[]]
    size, limit = 0, FIRST_BUCKET_BYTES
    for parameter in reversed(parameters):
        if size >= limit:
            buckets.append([])
            size, limit = 0, BUCKET_BYTES
        buckets[-1].append(parameter)
        size += parameter.numel() * 4
    return buckets


def wait_for_the_end(work: Work | None) -> None:
    """Of a call whose result nobody wants any more: only then is its memory free for other use. Its collective was left, or it is done."""
    if work is not None:
        with suppress(CollectiveBroken):
            work.wait()


class Bucket:
    def __init__(self, parameters: list[nn.Parameter], tail: int, dtype: torch.dtype) -> None:
        """`tail`: further numbers behind the gradients."""
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + tail, dtype=dtype, device=parameters[0].device)
        self.parameters = parameters
        self.tail: Tensor
        *pieces, self.tail = torch.split(self.flat, [*sizes, tail])
        self.views: list[Tensor] = [_like(parameter, piece) for piece, parameter in zip(pieces, parameters, strict=True)]
        self.missing: dict[nn.Parameter, Tensor] = {}
        self.work: Work | None = None

    @torch.no_grad()
    def take(self, parameter: nn.Parameter, view: Tensor) -> None:
        """Move a finished gradient into the bucket, while it is still in the processor's cache."""
        if parameter.grad is None:
            view.zero_()
        else:
            view.copy_(parameter.grad)
        parameter.grad = view if view.dtype == parameter.dtype else None
        self.missing.pop(parameter, None)


def _like(parameter: nn.Parameter, piece: Tensor) -> Tensor:
    """The numbers of a piece in the parameter's shape, and in its layout in memory (channels last), as optimizers want it."""
    if parameter.is_contiguous() or parameter.dim() != 4:
        return piece.view_as(parameter)
    return piece.as_strided(parameter.size(), parameter.stride())


class Travels(Protocol):
    work: Work | None
    """Under way; None while there is none."""


B = TypeVar("B", bound=Travels)


class BucketedExchange(Generic[B]):
    """What exchanges have in common: the collective of the present generation, and buckets that stay from one to the next."""

    def __init__(self, parameters: list[nn.Parameter], collective: Collective) -> None:
        self._parameters = parameters
        self.dtype = dtype_of_sums(parameters)
        """Of everything that is summed."""
        self._collective = collective
        self._buckets: list[B] = []
        self._sent = 0
        self._armed = False

    @property
    def world_size(self) -> int:
        return self._collective.world_size

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def check(self) -> None:
        """Raises CollectiveBroken once the generation was left: what is computed further is in vain."""
        self._collective.check()

    def use(self, collective: Collective) -> None:
        """Go on in another generation, of any world size, with the same buckets. The one before was left, or has no call under way."""
        self._armed = False
        for bucket in self._buckets:
            wait_for_the_end(bucket.work)
            bucket.work = None
        self._collective = collective


class GradientExchange(BucketedExchange[Bucket]):
    """The gradients of one generation after the other. A parameter without a gradient counts as zero, at every world size."""

    per_shard: ClassVar[bool] = False

    def __init__(self, parameters: list[nn.Parameter], collective: Collective) -> None:
        super().__init__(parameters, collective)
        self._sums: Tensor | None = None

    def begin_step(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self._armed = False

    def arm(self, sums: Tensor, *, last: bool = True) -> None:
        """Before the last backward pass: `sums`, (n,) of `dtype` and always as long, go with the last bucket."""
        if self.alone:
            self._sums = sums
            return
        if not self._buckets:
            self._make_buckets(len(sums))
        for bucket in self._buckets:
            bucket.missing = dict(zip(bucket.parameters, bucket.views, strict=True))
        self._buckets[-1].tail.copy_(sums)
        self._sent = 0
        self._armed = True

    def finish(self) -> Tensor:
        """After the last backward pass: wait for the others' gradients; `.grad` holds the sums then. Gives the sums of `sums`."""
        if self.alone:
            assert self._sums is not None, "armed before"
            for parameter in self._parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            return self._sums
        self._armed = False
        for bucket in self._buckets[self._sent :]:
            for parameter, view in [*bucket.missing.items()]:
                bucket.take(parameter, view)
            self._send(bucket)
        for bucket in self._buckets:
            assert bucket.work is not None, "all were sent"
            bucket.work.wait()
            bucket.work = None
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter.grad is None:  # of another type than the bucket
                    parameter.grad = view.to(parameter.dtype)
        return self._buckets[-1].tail

    def _make_buckets(self, tail: int) -> None:
        pending = cut_into_buckets(self._parameters)
        for index, members in enumerate(pending):
            bucket = Bucket(members, tail if index == len(pending) - 1 else 0, self.dtype)
            self._buckets.append(bucket)
            for parameter, view in zip(members, bucket.views, strict=True):
                parameter.register_post_accumulate_grad_hook(partial(self._ready, bucket, view))  # type: ignore[no-untyped-call] # untyped in torch

    def _ready(self, bucket: Bucket, view: Tensor, parameter: Any) -> None:
        if not self._armed:
            return
        self.check()
        bucket.take(parameter, view)
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])

    def _send(self, bucket: Bucket) -> None:
        bucket.work = self._collective.all_reduce(bucket.flat)
        self._sent += 1
