"""Summing gradients over the ranks in flat buckets, one all-reduce each: the fast exchange.

Measured on two CPU processes: ResNet-18 at the pace of DDP; an MLP of one bucket no slower than one reduction afterwards.

What the transport makes of a sum depends on the number of ranks; exact_exchange.py is the exchange for which it does not.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from launcher.training.reduce.exchange import Bucket, Exchange, dense, too_late


class FlatBucket(Bucket):
    """The memory in which the gradients of its parameters lie one behind the other, and at the end the tail."""

    def __init__(self, parameters: list[nn.Parameter], first: int, tail: int, dtype: torch.dtype) -> None:
        """`tail`: how many further numbers there are behind the gradients."""
        super().__init__(parameters, first)
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + tail, dtype=dtype, device=parameters[0].device)
        self.tail: Tensor
        *pieces, self.tail = torch.split(self.flat, [*sizes, tail])
        self.views: list[Tensor] = [_like(parameter, piece) for piece, parameter in zip(pieces, parameters, strict=True)]
        self.missing: dict[nn.Parameter, Tensor] = {}
        """Parameters whose gradients of this step are not in it yet, each with its view."""

    @torch.no_grad()
    def take(self, parameter: nn.Parameter, view: Tensor) -> None:
        """Move a finished gradient into the bucket, while it is still in the processor's cache."""
        del self.missing[parameter]
        assert parameter.grad is not None, "it is finished"
        view.copy_(dense(parameter.grad))
        parameter.grad = view if view.dtype == parameter.dtype else None

    def take_missing(self) -> list[int]:
        """Take what nobody said is finished; gives the places of parameters without a gradient, counted over all buckets."""
        if not self.missing:
            return []
        unused = []
        for place, (parameter, view) in enumerate(zip(self.parameters, self.views, strict=True), start=self.first):
            if parameter not in self.missing:
                continue
            if parameter.grad is None:
                view.zero_()
                unused.append(place)
            else:
                self.take(parameter, view)
        return unused

    @torch.no_grad()
    def add(self, parameter: nn.Parameter, view: Tensor) -> None:
        """A further part of a gradient that was taken: autograd adds it in place where `.grad` is the view."""
        if parameter.grad is not view and parameter.grad is not None:
            view.add_(dense(parameter.grad))
            parameter.grad = None

    def give_back(self, used: list[bool]) -> None:
        # Parameters of the bucket's type have their sums already, as views.
        for parameter, view, flag in zip(self.parameters, self.views, used, strict=True):
            if not flag:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = view.to(parameter.dtype) if view.dtype != parameter.dtype else view


def _like(parameter: nn.Parameter, piece: Tensor) -> Tensor:
    """The numbers of a piece in the parameter's shape, and in its layout in memory (channels last), as optimizers want it."""
    return piece.as_strided(parameter.size(), torch.empty_like(parameter, device="meta").stride())


class GradientExchange(Exchange):
    """Takes all of a rank's shards together: they have added up in `.grad` before anything is sent."""

    per_shard: ClassVar[bool] = False

    _buckets: list[FlatBucket]

    def begin_step(self) -> None:
        self._drop_gradients()
        self._armed = False

    def arm(self, sums: Tensor, *, last: bool = True) -> None:
        self._sums = sums
        if self.alone:
            return
        if not self._buckets or len(sums) != self._length:
            self._make_buckets(len(sums))
        for bucket in self._buckets:
            bucket.missing = dict(zip(bucket.parameters, bucket.views, strict=True))
        self._unused = []
        self._sent = 0
        self._armed = True

    def finish(self) -> Tensor:
        assert self._sums is not None, "armed before"
        if self.alone:
            for parameter in self._laid_out:
                if parameter.grad is not None:
                    parameter.grad = dense(parameter.grad)
            return self._sums
        self._armed = False
        for bucket in self._buckets[self._sent :]:
            self._send(bucket)
        for bucket in self._buckets:
            bucket.wait()
        return self._give_back(self._buckets[-1].tail)

    def _make_buckets(self, sums: int) -> None:
        for index, (members, first, tail) in enumerate(self._cut(sums)):
            bucket = FlatBucket(members, first, tail, self.dtype)
            self._buckets.append(bucket)
            for parameter, view in zip(members, bucket.views, strict=True):
                self._listen(parameter, partial(self._ready, index, view))

    def _ready(self, index: int, view: Tensor, parameter: nn.Parameter) -> None:
        if not self._armed:
            return
        self.check()
        bucket = self._buckets[index]
        if parameter in bucket.missing:
            bucket.take(parameter, view)
        elif index < self._sent:
            raise too_late(parameter)
        else:
            bucket.add(parameter, view)
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])

    @torch.no_grad()
    def _send(self, bucket: FlatBucket) -> None:
        """In the order of the buckets."""
        self._unused += bucket.take_missing()
        if bucket is self._buckets[-1]:
            bucket.tail.copy_(self._tail())
        bucket.work = self._collective.all_reduce(bucket.flat)
        self._sent += 1
