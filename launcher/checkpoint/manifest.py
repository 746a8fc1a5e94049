"""What a checkpoint consists of: tensors cut into chunks, the ranks' parts, and the manifest whose creation is the commit.

The cut depends on names, shapes and dtypes alone. So every rank computes it by itself, a checkpoint written by three
workers has the same chunks as one written by eight, and a tensor that did not change keeps its blob. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt, UserCodeError
from launcher.core.types import Generation, Json, JsonObject, Rank, RunId, Step, Term, WorldSize
from launcher.record.run_store import encode

VERSION = 1
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

_FLOAT = "__float__"


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


@dataclass(frozen=True)
class ChunkRef:
    index: int
    digest: str
    """SHA-256 of the chunk's bytes; its key is blobs/DIGEST."""
    size_bytes: int


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
    start, _, name = key.partition(":")
    return name, int(start)


def element_bytes(name: str, dtype: str) -> int:
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


@dataclass(frozen=True, kw_only=True)
class CheckpointPart:
    """What one rank stored of a checkpoint. Rank 0 also gives the tensors and the state."""

    step: Step
    generation: Generation
    rank: Rank
    world_size: WorldSize
    chunk_count: int
    """Chunks of the whole checkpoint, as this rank counts them."""
    chunks: tuple[ChunkRef, ...]
    tensors: tuple[TensorMeta, ...] | None = None
    state: JsonObject | None = None
    """Everything that is not a tensor."""

    def to_json(self) -> JsonObject:
        """Strict JSON; a number in the state that is not finite is written as {"__float__": "inf"}."""
        return {**_json_fields(self), "state": None if self.state is None else _strict(self.state)}

    @classmethod
    def from_json(cls, document: Any) -> CheckpointPart:
        return cls(
            **{
                **document,
                "chunks": _chunks(document["chunks"]),
                "tensors": None if document["tensors"] is None else _tensors(document["tensors"]),
                "state": _plain(document["state"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """The commit record of one checkpoint. It is created once; a checkpoint exists when its manifest does."""

    version: int = VERSION
    run_id: RunId
    step: Step
    term: Term
    generation: Generation
    samples: int
    """Position in the endless stream of samples: training goes on with this one."""
    tensors: tuple[TensorMeta, ...]
    chunks: tuple[ChunkRef, ...]
    state: JsonObject
    """Everything that is not a tensor: optimizer, scheduler, scaler."""
    created_at: str

    def to_json(self) -> JsonObject:
        """Strict JSON with a digest of itself; a number in the state that is not finite is written as {"__float__": "inf"}."""
        document = {**_json_fields(self), "state": _strict(self.state)}
        return {**document, "digest": _self_digest(document)}

    @classmethod
    def from_json(cls, document: Any) -> CheckpointManifest:
        """Raises CheckpointCorrupt for another version, and where the content is not what the digest in it says."""
        version = document.get("version") if isinstance(document, Mapping) else None
        if version != VERSION:
            raise CheckpointCorrupt(
                "the checkpoint was written by another version of launcher, or is damaged",
                given=f"version {version}",
                expected=f"version {VERSION}",
                next="resume with the launcher that wrote it, or from another checkpoint",
            )
        written = {item.name: document.get(item.name) for item in fields(cls)}
        if _self_digest(written) != document.get("digest"):
            raise CheckpointCorrupt("the manifest of a checkpoint is damaged", given="content that does not fit its digest")
        values = {"chunks": _chunks(written["chunks"]), "tensors": _tensors(written["tensors"]), "state": _plain(written["state"])}
        return cls(**{**written, **values})


def assemble(
    parts: Collection[CheckpointPart], *, run_id: RunId, term: Term, global_batch_size: int, created_at: str
) -> CheckpointManifest:
    """The manifest of the parts of one step, one of each rank of one generation.

    Raises CheckpointAbandoned when parts are missing or doubled, come from different steps or generations, or do not make a whole:
    then nothing is committed and the checkpoint is saved again.
    """
    ordered = sorted(parts, key=lambda part: part.rank)
    if not ordered:
        raise CheckpointAbandoned("a checkpoint has no parts")
    first = ordered[0]
    for part in ordered:
        same = (part.step, part.generation, part.world_size, part.chunk_count)
        if same != (first.step, first.generation, first.world_size, first.chunk_count):
            raise CheckpointAbandoned(
                "the parts of a checkpoint do not belong together",
                where=f"step {first.step}, ranks {first.rank} and {part.rank}",
                given=f"step {part.step}, generation {part.generation}, {part.world_size} workers, {part.chunk_count} chunks",
                expected=f"step {first.step}, generation {first.generation}, {first.world_size} workers, {first.chunk_count} chunks",
                next="save again at the next step",
            )
    ranks = [int(part.rank) for part in ordered]
    chunks = sorted((chunk for part in ordered for chunk in part.chunks), key=lambda chunk: chunk.index)
    indices = [chunk.index for chunk in chunks]
    incomplete = ""
    if ranks != list(range(first.world_size)):
        incomplete = f"parts of the ranks {ranks}, of {first.world_size}"
    elif indices != list(range(first.chunk_count)):
        incomplete = f"chunks {indices}, of {first.chunk_count}"
    elif first.tensors is None or first.state is None:
        incomplete = "no tensors and state from rank 0"
    if incomplete or first.tensors is None or first.state is None:
        raise CheckpointAbandoned(
            "a checkpoint is not whole",
            where=f"step {first.step}",
            given=incomplete,
            expected="each once",
            next="save again at the next step",
        )
    return CheckpointManifest(
        run_id=run_id,
        step=first.step,
        term=term,
        generation=first.generation,
        samples=first.step * global_batch_size,
        tensors=first.tensors,
        chunks=tuple(chunks),
        state=first.state,
        created_at=created_at,
    )


def _json_fields(record: CheckpointPart | CheckpointManifest) -> dict[str, Any]:
    """As JSON reads it back: lists, no tuples."""
    document = {item.name: getattr(record, item.name) for item in fields(record)}
    document["chunks"] = [asdict(chunk) for chunk in record.chunks]
    document["tensors"] = None if record.tensors is None else [{**asdict(item), "shape": list(item.shape)} for item in record.tensors]
    return document


def _self_digest(document: Mapping[str, Any]) -> str:
    # Encoded twice, because keys that are numbers sort in another order once they are text.
    return hashlib.sha256(encode(json.loads(encode(document)))).hexdigest()


def _chunks(documents: Any) -> tuple[ChunkRef, ...]:
    return tuple(ChunkRef(**item) for item in documents)


def _tensors(documents: Any) -> tuple[TensorMeta, ...]:
    return tuple(TensorMeta(item["name"], tuple(item["shape"]), item["dtype"]) for item in documents)


def _strict(value: Json) -> Any:
    """JSON has no infinities, and ReduceLROnPlateau keeps one."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value[_FLOAT]) if value.keys() == {_FLOAT} else {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
