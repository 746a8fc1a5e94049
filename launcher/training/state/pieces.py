"""How a training state is cut to be sent to other ranks: by names, shapes and dtypes alone, so that every rank cuts it alike. Pure.

A large tensor is cut into slices, each a piece that goes straight from memory to memory; small ones are bundled, many to a piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from launcher.checkpoint.chunk_plan import element_bytes, share

PIECE_BYTES = 8 << 20
"""The most of a tensor in one piece: large enough that messages cost nothing, small enough that digests keep up with the sending."""
BUNDLE_BYTES = 1 << 20
"""The most in a bundle: its bytes are copied on both sides, so it should be in transit early."""
ALONE_BYTES = 256 << 10
"""A tensor of so many bytes or more gets messages of its own."""
_ALIGNED = 64


class TensorLayout(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as it is sent: its bytes in the order of its memory. In JSON a list of its fields."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch names it, without the prefix: float32, bfloat16, int64, bool, ..."""
    strides: tuple[int, ...]
    """In elements; without gaps or overlaps, whatever the order of the dimensions."""
    on_device: bool
    """False: in the CPU's memory although the model may be elsewhere, such as Adam's count of steps."""
    same_as: str | None = None
    """A tensor named before it in the same memory (tied weights): it is not sent again."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * element_bytes(self.name, self.dtype)


@dataclass(frozen=True)
class Slice:
    """Bytes start <= i < stop of a tensor, in the order of its memory."""

    name: str
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class StatePiece:
    """What is sent in one message: a slice of a large tensor, or several small tensors."""

    slices: tuple[Slice, ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.slices)


def cut(layouts: Sequence[TensorLayout]) -> tuple[StatePiece, ...]:
    """All bytes of all tensors, each once, in the order of the names. Tensors without elements, or tied to another, have no piece."""
    pieces: list[StatePiece] = []
    bundle: list[Slice] = []
    room = BUNDLE_BYTES
    for layout in sorted(layouts, key=lambda layout: layout.name):
        size = layout.size_bytes
        if layout.same_as is not None or size == 0:
            continue
        if size >= ALONE_BYTES:
            pieces += [StatePiece((part,)) for part in _slices(layout.name, size)]
            continue
        if size > room:
            pieces.append(StatePiece(tuple(bundle)))
            bundle, room = [], BUNDLE_BYTES
        bundle.append(Slice(layout.name, 0, size))
        room -= size
    if bundle:
        pieces.append(StatePiece(tuple(bundle)))
    return tuple(pieces)


def shares(pieces: Sequence[StatePiece], donors: int) -> tuple[tuple[int, ...], ...]:
    """Which pieces each donor sends: indices, ascending; the bytes as even as pieces allow."""
    return share([piece.size_bytes for piece in pieces], donors)


def arrival(shared: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(index of a donor, index of a piece): the order in which a receiver takes them, so that all donors are under way at once."""
    longest = max((len(indices) for indices in shared), default=0)
    return [(donor, indices[turn]) for turn in range(longest) for donor, indices in enumerate(shared) if turn < len(indices)]


def _slices(name: str, size: int) -> list[Slice]:
    """Slices of about the same size, so that no tiny one is left at the end."""
    count = -(-size // PIECE_BYTES)
    length = -(-size // count // _ALIGNED) * _ALIGNED if count > 1 else size
    return [Slice(name, start, min(start + length, size)) for start in range(0, size, length)]
