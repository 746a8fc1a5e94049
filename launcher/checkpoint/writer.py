"""A plain writer: serialise this rank's share at once, so that training may go on, and upload it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save

from launcher.checkpoint.chunk_plan import MAX_CHUNK_BYTES, Piece, TensorMeta, element_bytes, piece_key, plan_chunks, share
from launcher.checkpoint.chunks import blob_key, digest_of
from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.errors import UserCodeError
from launcher.core.types import Generation, JsonObject, Rank, Step, WorldSize
from launcher.record.run_store import RunStore


@dataclass(frozen=True, kw_only=True)
class Staged:
    """One rank's share of a checkpoint, in memory; independent of the tensors it was taken from."""

    step: Step
    generation: Generation
    rank: Rank
    world_size: WorldSize
    chunk_count: int
    chunks: tuple[tuple[int, bytes], ...]
    """Index and safetensors bytes of each chunk of the share."""
    tensors: tuple[TensorMeta, ...] | None
    state: JsonObject | None


class PartWriter:
    """Writes one rank's part of every checkpoint of a run."""

    def __init__(self, run: RunStore, *, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        self._run = run
        self._max_chunk_bytes = max_chunk_bytes

    def stage(
        self,
        tensors: Mapping[str, torch.Tensor],
        state: JsonObject,
        *,
        step: Step,
        generation: Generation,
        rank: Rank,
        world_size: WorldSize,
    ) -> Staged:
        """Copy and serialise this rank's share of the chunks. When it returns, the tensors may change.

        Every rank hands in the same names, shapes and dtypes. Tensors that share memory are stored under each name.
        Raises UserCodeError for a tensor that cannot be stored (sparse, or of an exotic dtype).
        """
        metas = tuple(_meta(name, tensor) for name, tensor in sorted(tensors.items()))
        plan = plan_chunks(metas, self._max_chunk_bytes)
        width = {meta.name: element_bytes(meta.name, meta.dtype) for meta in metas}
        sizes = [sum((piece.stop - piece.start) * width[piece.name] for piece in pieces) for pieces in plan]
        first = rank == 0
        return Staged(
            step=step,
            generation=generation,
            rank=rank,
            world_size=world_size,
            chunk_count=len(plan),
            chunks=tuple((index, _serialise(plan[index], tensors)) for index in share(sizes, world_size)[rank]),
            tensors=metas if first else None,
            state=state if first else None,
        )

    def upload(self, staged: Staged) -> CheckpointPart:
        """Put the chunks under their digests, and say what was stored.

        Nothing is visible before a manifest names the chunks. The same chunk may be put again: same key, same bytes.
        Raises StoreUnavailable.
        """
        chunks = []
        for index, data in staged.chunks:
            chunk = ChunkRef(index, digest_of(data), len(data))
            self._run.store.put(self._run.key(blob_key(chunk.digest)), data)
            chunks.append(chunk)
        return CheckpointPart(
            step=staged.step,
            generation=staged.generation,
            rank=staged.rank,
            world_size=staged.world_size,
            chunk_count=staged.chunk_count,
            chunks=tuple(chunks),
            tensors=staged.tensors,
            state=staged.state,
        )


def _meta(name: str, tensor: torch.Tensor) -> TensorMeta:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UserCodeError(
            "a tensor cannot be stored in a checkpoint",
            where=f"state {name}",
            given=f"layout {str(tensor.layout).removeprefix('torch.')}, {tensor.dtype}",
            expected="a dense tensor",
            next="convert it, or keep it out of the model's state",
        )
    return TensorMeta(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _serialise(pieces: tuple[Piece, ...], tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Every piece is a copy: safetensors refuses tensors that share memory, as tied weights do.
    data: bytes = save({piece_key(piece.name, piece.start): _copy(tensors[piece.name], piece) for piece in pieces})
    return data


def _copy(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)[piece.start : piece.stop]
    return flat.to("cpu", copy=True, memory_format=torch.contiguous_format)
