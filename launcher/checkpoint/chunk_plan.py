"""How tensors are cut into chunks, and which rank writes which. Pure; nothing here imports torch.

The cut depends on names, shapes and dtypes alone. So every rank computes it by itself, a checkpoint written by three
workers has the same chunks as one written by eight, and a tensor that did not change keeps its blob.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.core.errors import UserCodeError

MAX_CHUNK_BYTES = 64 * 1024 * 1024

ELEMENT_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element, by the dtype's name in torch: what safetensors can hold and a checkpoint therefore too."""


@dataclass(frozen=True)
class TensorMeta:
    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch names it, without the prefix: float32, bfloat16, int64, bool, ..."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Piece:
    """Elements start <= i < stop of the flattened tensor."""

    name: str
    start: int
    stop: int


def plan_chunks(tensors: Sequence[TensorMeta], max_bytes: int = MAX_CHUNK_BYTES) -> tuple[tuple[Piece, ...], ...]:
    """Cut tensors into chunks of at most `max_bytes` of data each, by names, shapes and dtypes alone.

    Tensors are taken in the order of their names and laid end to end. One that is as large as a chunk begins a chunk of
    its own, so that its pieces do not shift when a small one before it grows. Tensors without elements have no piece.
    Raises UserCodeError for a dtype that cannot be stored, ValueError for a name that occurs twice.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    chunks: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    room = max_bytes
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        width = element_bytes(tensor.name, tensor.dtype)
        if current and tensor.elements * width >= max_bytes:
            chunks.append(tuple(current))
            current, room = [], max_bytes
        start = 0
        while start < tensor.elements:
            if current and room < width:
                chunks.append(tuple(current))
                current, room = [], max_bytes
            stop = min(tensor.elements, start + max(1, room // width))
            current.append(Piece(tensor.name, start, stop))
            room -= (stop - start) * width
            start = stop
    if current:
        chunks.append(tuple(current))
    return tuple(chunks)


def piece_key(name: str, start: int) -> str:
    """The key of a piece inside its chunk: a chunk says by itself what it holds."""
    return f"{start}:{name}"


def parse_piece_key(key: str) -> tuple[str, int]:
    """Name and start of a piece. Raises ValueError where the start is no number."""
    start, _, name = key.partition(":")
    return name, int(start)


def element_bytes(name: str, dtype: str) -> int:
    """Bytes of one element. Raises UserCodeError, naming the tensor, for a dtype that cannot be stored."""
    if dtype not in ELEMENT_BYTES:
        raise UserCodeError(
            "a tensor cannot be stored in a checkpoint",
            where=f"state {name}",
            given=f"dtype {dtype}",
            expected="one of " + ", ".join(ELEMENT_BYTES),
            next="convert it, or keep it out of the model's state",
        )
    return ELEMENT_BYTES[dtype]


def share(chunk_bytes: Sequence[int], world_size: int) -> tuple[tuple[int, ...], ...]:
    """Which rank writes which chunks: for each rank its indices, ascending, the bytes as even as greedy choice makes them."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(range(len(chunk_bytes)), key=lambda index: (-chunk_bytes[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += chunk_bytes[index]
    return tuple(tuple(sorted(indices)) for indices in shares)
