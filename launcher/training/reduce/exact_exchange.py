"""Summing gradients so that the bits of the sum do not depend on the world size: the exchange of exact mode.

A rank takes the gradients of one shard after the other and adds them up along the tree of reduction_tree.py. What is left at its
end are the sums of its largest whole subtrees. For each bucket every rank then gets one segment of everybody's partial sums, does
the additions that are still missing for it, and gives the result to all: the traffic of a ring's reduction, times the subtrees of a
rank where the shards are not shared out evenly. The sending of buckets begins while the last backward pass computes.

Gradients are kept as autograd made them; they are copied only to be sent. A tensor that an optimizer sees has the parameter's
layout and is aligned at every world size, because kernels may add up differently in another layout. Memory: fewer than
2 x log2(shards of a rank) + 2 times the gradients, and with more ranks their segments of others' partial sums.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from launcher.training.comm.collective import Collective, Work
from launcher.training.reduce.exchange import Bucket, Exchange, dense, too_late
from launcher.training.reduce.reduction_tree import Subtree, TreeSum, subtrees_of
from launcher.training.shards.batch import share

ALIGNMENT = 64
"""Numbers between the places where tensors of a bucket may begin: a multiple of every vector that kernels read at once."""


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left


def _add_row(left: Tensor, right: Tensor) -> Tensor:
    return left.add_(right)


class Segments:
    """The memory in which the ranks exchange one bucket's partial sums, for one way to share out the shards."""

    def __init__(self, lengths: list[int], owned: list[tuple[Subtree, ...]], rank: int, like: Tensor) -> None:
        """`lengths`: of the bucket's tensors; `owned`: the subtrees of each rank."""
        world_size, own = len(owned), len(owned[rank])
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + _aligned(length))
        size = _aligned(-(-starts[-1] // world_size))
        self.flat = like.new_zeros(world_size * size)
        """A partial sum that is about to be sent, later the sum over all shards."""
        self.pieces = [self.flat[start : start + length] for start, length in zip(starts, lengths, strict=False)]
        self._outgoing = self.flat.view(world_size, 1, size) if own == 1 else like.new_empty(world_size, own, size)
        self._incoming = like.new_empty(sum(map(len, owned)), size)
        self._sent_rows = [own] * world_size
        self._received_rows = [len(subtrees) for subtrees in owned]
        self._subtrees = [subtree for subtrees in owned for subtree in subtrees]

    def send(self, partials: list[list[Tensor]], collective: Collective) -> Work:
        """Give each rank its segment of the own partial sums: those of each own subtree, the tensors flat, in the bucket's order."""
        for index, tensors in enumerate(partials):
            torch._foreach_copy_(self.pieces, tensors)
            if len(partials) > 1:
                self._outgoing[:, index].copy_(self.flat.view(len(self._sent_rows), -1))
        rows = self._outgoing.view(-1, self._outgoing.shape[-1])
        return collective.all_to_all(self._incoming, rows, self._received_rows, self._sent_rows)

    def gather(self, shards: int, collective: Collective) -> Work:
        """After the work of `send`: add up the own segment, and collect everybody's."""
        tree = TreeSum(shards, _add_row)
        for subtree, row in zip(self._subtrees, self._incoming.unbind(), strict=True):
            tree.add(subtree, row)
        return collective.all_gather(self.flat, tree.total)


class ExactBucket(Bucket):
    """The sums of its parameters' gradients over the shards so far."""

    def __init__(self, parameters: list[nn.Parameter], first: int, tail: int, dtype: torch.dtype, shards: int) -> None:
        """`tail`: how many further numbers there are behind the gradients; `shards`: of the whole step."""
        super().__init__(parameters, first)
        self.tail: Tensor | None = None
        """The further numbers of the shard that is computed now."""
        self.missing: set[nn.Parameter] = set()
        """Parameters whose gradients of the last backward pass are not complete yet."""
        self.segments: Segments | None = None
        self._has_tail = tail > 0
        self._lengths = [parameter.numel() for parameter in parameters] + [tail] * self._has_tail
        self._strides = [torch.empty_like(parameter, device="meta").stride() for parameter in parameters]
        self._dtype = dtype
        self._shards = shards
        self._tree = TreeSum(shards, _add)

    def begin(self) -> None:
        """Forget the sums of the step before."""
        self._tree = TreeSum(self._shards, _add)

    def unused(self) -> list[int]:
        """Places of the parameters that have no gradient of this shard, counted over all buckets."""
        return [place for place, parameter in enumerate(self.parameters, start=self.first) if parameter.grad is None]

    def take(self, shard: int) -> None:
        """Move the gradients of a shard from the parameters into the sum."""
        tensors = []
        for parameter, stride in zip(self.parameters, self._strides, strict=True):
            tensors.append(_as_leaf(parameter, stride, self._dtype))
            parameter.grad = None
        if self._has_tail:
            assert self.tail is not None, "given before"
            tensors.append(self.tail)
        self._tree.add_shard(shard, tensors)

    def lay_out(self, owned: list[tuple[Subtree, ...]], rank: int) -> None:
        """Allocate what the exchange of this generation needs; `owned`: the subtrees of each rank."""
        like = torch.empty(0, dtype=self._dtype, device=self.parameters[0].device)
        self.segments = Segments(self._lengths, owned, rank, like)

    def send(self, collective: Collective) -> None:
        """Begin the exchange, once the rank's last shard is taken."""
        assert self.segments is not None, "laid out before"
        flat = [[_flat(tensor) for tensor in tensors] for tensors in self._tree.partials]
        self.work = self.segments.send(flat, collective)

    def gather(self, collective: Collective) -> None:
        """Once the others' partial sums are here: add up the own segment, and collect everybody's."""
        assert self.segments is not None, "laid out before"
        self.wait()
        self.work = self.segments.gather(self._shards, collective)

    def collect(self) -> Tensor | None:
        """Wait for the sums over all shards; gives the tail's, None where the bucket has no tail."""
        if self.work is not None:
            self.wait()
        return self._sums()[-1] if self._has_tail else None

    def give_back(self, used: list[bool]) -> None:
        for parameter, total, flag in zip(self.parameters, self._sums(), used, strict=False):
            parameter.grad = total.to(parameter.dtype) if flag else None

    def _sums(self) -> list[Tensor]:
        """Over all shards, in the parameters' layout, then the tail."""
        if self.segments is None:
            return self._tree.total
        pieces = self.segments.pieces
        layouts = zip(pieces, self.parameters, self._strides, strict=False)
        shaped = [piece.as_strided(parameter.size(), stride) for piece, parameter, stride in layouts]
        return [*shaped, *pieces[len(shaped) :]]


def _as_leaf(parameter: nn.Parameter, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    gradient = None if parameter.grad is None else dense(parameter.grad)
    if gradient is not None and gradient.dtype == dtype and gradient.stride() == stride:
        return gradient
    leaf = torch.empty_strided(parameter.size(), stride, dtype=dtype, device=parameter.device)
    return leaf.zero_() if gradient is None else leaf.copy_(gradient)


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps, in their order in memory, (n,); no copy."""
    return tensor.as_strided((tensor.numel(),), (1,))


class ExactExchange(Exchange):
    """Takes one shard a backward pass, in their order."""

    per_shard: ClassVar[bool] = True
    _buckets: list[ExactBucket]

    def __init__(self, parameters: list[nn.Parameter], collective: Collective, *, shards: int) -> None:
        """`shards`: V. The collective has at most as many ranks."""
        super().__init__(parameters, collective)
        self._shards = shards
        self._next = 0
        """The shard of this rank whose backward pass comes next."""
        self._pending = False
        """Whether a shard's gradients are, or will be, in the parameters."""
        self.use(collective)

    def use(self, collective: Collective) -> None:
        super().use(collective)
        for bucket in self._buckets:
            bucket.segments = None
        self._own = share(self._shards, collective.world_size, collective.rank)
        self._segments_made = False

    def begin_step(self) -> None:
        self._drop_gradients()
        for bucket in self._buckets:
            bucket.begin()
        self._next = self._own.start
        self._pending = False
        self._armed = False

    @torch.no_grad()
    def arm(self, sums: Tensor, *, last: bool) -> None:
        if not self._buckets or len(sums) != self._length:
            self._make_buckets(len(sums))
        if self._pending:
            for bucket in self._buckets:
                self._take(bucket)
            self._next += 1
        self._sums = sums
        self._unused = []
        self._pending = True
        if last and not self.alone:
            if not self._segments_made:
                self._make_segments()
            for bucket in self._buckets:
                bucket.missing = set(bucket.parameters)
            self._sent = 0
            self._armed = True

    @torch.no_grad()
    def finish(self) -> Tensor:
        self._armed = False
        assert self._pending, "armed before"
        assert self._next == self._own.stop - 1, "one backward pass for each shard"
        self._pending = False
        if self.alone:
            for bucket in self._buckets:
                self._take(bucket)
        else:
            for bucket in self._buckets[self._sent :]:
                self._send(bucket)
            for bucket in self._buckets:
                bucket.gather(self._collective)
        *_, tail = [bucket.collect() for bucket in self._buckets]
        assert tail is not None, "the last bucket has it"
        return self._give_back(tail)

    def _make_buckets(self, sums: int) -> None:
        self._segments_made = False
        for index, (members, first, tail) in enumerate(self._cut(sums)):
            bucket = ExactBucket(members, first, tail, self.dtype, self._shards)
            self._buckets.append(bucket)
            for parameter in members:
                self._listen(parameter, partial(self._ready, index, bucket))

    def _make_segments(self) -> None:
        owned = [subtrees_of(share(self._shards, self.world_size, rank), self._shards) for rank in range(self.world_size)]
        for bucket in self._buckets:
            bucket.lay_out(owned, self._collective.rank)
        self._segments_made = True

    @torch.no_grad()
    def _ready(self, index: int, bucket: ExactBucket, parameter: nn.Parameter) -> None:
        if not self._armed:
            return
        self.check()
        if index < self._sent:
            raise too_late(parameter)
        bucket.missing.discard(parameter)
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])

    def _take(self, bucket: ExactBucket) -> None:
        """In the order of the buckets."""
        self._unused += bucket.unused()
        if bucket is self._buckets[-1]:
            bucket.tail = self._tail()
        bucket.take(self._next)

    def _send(self, bucket: ExactBucket) -> None:
        self._take(bucket)
        bucket.send(self._collective)
        self._sent += 1
