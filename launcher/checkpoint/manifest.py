"""What a checkpoint consists of: the ranks' parts, and the manifest whose creation is the commit. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace

from msgspec import ValidationError, convert

from launcher.checkpoint.chunk_plan import TensorMeta
from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt
from launcher.core.types import Generation, Json, JsonObject, Rank, RunId, Step, Term, WorldSize
from launcher.record.encoding import encode

VERSION = 1
_FLOAT = "__float__"


@dataclass(frozen=True)
class ChunkRef:
    index: int
    digest: str
    """SHA-256 of the chunk's bytes; its key is blobs/DIGEST."""
    size_bytes: int


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
    def from_json(cls, document: object) -> CheckpointPart:
        """Raises msgspec.ValidationError that names the key where it is none."""
        part = convert(document, cls)
        return part if part.state is None else replace(part, state=_plain_object(part.state))


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
    def from_json(cls, document: JsonObject) -> CheckpointManifest:
        """Raises CheckpointCorrupt for another version, and where the content is not what the digest in it says."""
        version = document.get("version")
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
        try:
            manifest = convert(written, cls)
        except ValidationError as error:
            raise CheckpointCorrupt("the manifest of a checkpoint is damaged", given=str(error)) from error
        return replace(manifest, state=_plain_object(manifest.state))


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


def _json_fields(record: CheckpointPart | CheckpointManifest) -> JsonObject:
    """As JSON reads it back: lists, no tuples."""
    document: JsonObject = {item.name: getattr(record, item.name) for item in fields(record)}
    document["chunks"] = [{"index": chunk.index, "digest": chunk.digest, "size_bytes": chunk.size_bytes} for chunk in record.chunks]
    document["tensors"] = None if record.tensors is None else [{**asdict(item), "shape": list(item.shape)} for item in record.tensors]
    return document


def _self_digest(document: Mapping[str, Json]) -> str:
    # Encoded twice, because keys that are numbers sort in another order once they are text.
    return hashlib.sha256(encode(json.loads(encode(document)))).hexdigest()


def _strict(value: Json) -> Json:
    """JSON has no infinities, and ReduceLROnPlateau keeps one."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def _plain(value: Json) -> Json:
    """What `_strict` was given."""
    if isinstance(value, dict):
        text = value.get(_FLOAT)
        return float(text) if isinstance(text, str) and len(value) == 1 else _plain_object(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _plain_object(document: JsonObject) -> JsonObject:
    return {key: _plain(item) for key, item in document.items()}
