"""What a task is given: one tensor, or tuples, lists and mappings of tensors, with the samples along the first dimension of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from launcher.core.errors import UserCodeError

Batch: TypeAlias = Any
"""A tensor, or a tuple, list or dict of such; each tensor is (n, ...) for n samples. Where samples are tuples or lists, it is a tuple."""
Part: TypeAlias = tuple[range, Batch]
"""Positions in a row of samples, and the batch of the samples at these."""


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in the order in which they stand in it."""
    leaves: list[Tensor] = pytree.tree_leaves(batch)
    return leaves


def with_each(batch: Batch, function: Callable[[Any], object]) -> Any:
    """The same nest, with what the function makes of each tensor."""
    return pytree.tree_map(function, batch)


def checked(batch: object, samples: int, *, where: str, source: str) -> Batch:
    """The batch; a list becomes a tuple, and mappings of every kind dicts. `where`: the data set's name in errors; `source`: what gave the batch.

    Raises UserCodeError where something in it is no tensor, or holds another number of samples.
    """
    if type(batch) is tuple and batch and all(isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == samples for leaf in batch):
        return batch  # the common case, in a step that may take less than a millisecond
    plain = _with_dicts(tuple(batch) if isinstance(batch, list) else batch)
    leaves = pytree.tree_leaves(plain)
    strange = next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)), None if leaves else "nothing")
    if strange is not None:
        raise UserCodeError(
            f"{source} gave something that is no tensor",
            where=where,
            given=f"{strange} in {type(batch).__name__}",
            expected="tensors, or tuples, lists or mappings of them",
            next="leave it out, or make it a tensor in a collate_fn of the data set",
        )
    if any(leaf.dim() == 0 or len(leaf) != samples for leaf in leaves):
        raise UserCodeError(
            f"{source} gave another number of samples",
            where=where,
            given=", ".join(str(tuple(leaf.shape)) for leaf in leaves),
            expected=f"{samples} along the first dimension of each tensor",
        )
    return plain


def assembled(parts: Sequence[Part], wanted: range, micro_batch_size: int, *, where: str, pinned: bool) -> Batch:
    """One batch of the samples at `wanted`, whose shards of `micro_batch_size` are interleaved: sample j of the v-th is row j x width + v.

    `parts` cover `wanted`, and may have more; they are copied, because a model may write into its input and `parts` be wanted again.
    `pinned`: in memory from which a GPU can read.
    Raises UserCodeError where the parts' batches have different forms.
    """
    width = len(wanted) // micro_batch_size
    first, form = pytree.tree_flatten(parts[0][1])
    whole = [
        torch.empty((micro_batch_size, width, *leaf.shape[1:]), dtype=leaf.dtype, device=leaf.device, pin_memory=pinned) for leaf in first
    ]
    for positions, batch in parts:
        leaves, its_form = pytree.tree_flatten(batch)
        if its_form != form or any(a.shape[1:] != b.shape[1:] or a.dtype != b.dtype for a, b in zip(leaves, first, strict=True)):
            raise _different_forms(parts[0][1], batch, where, width)
        for shard in range(width):
            start = wanted.start + shard * micro_batch_size
            overlap = range(max(start, positions.start), min(start + micro_batch_size, positions.stop))
            if overlap:
                for target, leaf in zip(whole, leaves, strict=True):
                    rows = leaf[overlap.start - positions.start : overlap.stop - positions.start]
                    target[overlap.start - start : overlap.stop - start, shard].copy_(rows)
    return pytree.tree_unflatten([target.flatten(0, 1) for target in whole], form)


def _with_dicts(nest: object) -> object:
    """Other mappings, such as the batches of a tokenizer, mean the same."""
    if isinstance(nest, Mapping):
        return {key: _with_dicts(value) for key, value in nest.items()}
    return nest


def _different_forms(first: Batch, other: Batch, where: str, width: int) -> UserCodeError:
    return UserCodeError(
        "samples of one forward pass cannot be put together",
        where=where,
        given=f"{_form(first)} and {_form(other)}",
        expected="the same form from every sample",
        next="set trainer.fuse=off: each shard then has a forward pass of its own" if width > 1 else "",
    )


def _form(batch: Batch) -> str:
    return ", ".join(f"{tuple(leaf.shape[1:])} {leaf.dtype}" for leaf in tensors_of(batch))
