"""Load a committed checkpoint, whatever the world size that wrote it: verify every digest, put the pieces together."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from launcher.checkpoint.catalog import manifest_key
from launcher.checkpoint.chunk_plan import ELEMENT_BYTES, parse_piece_key
from launcher.checkpoint.chunks import read_chunk
from launcher.checkpoint.manifest import CheckpointManifest, ChunkRef
from launcher.core.errors import CheckpointCorrupt
from launcher.core.types import JsonObject
from launcher.record.run_store import RunStore


def read_checkpoint(run: RunStore, manifest: CheckpointManifest) -> tuple[dict[str, torch.Tensor], JsonObject]:
    """Tensors by name, on the CPU, and the state. Raises CheckpointCorrupt, naming chunk, key and checkpoint."""
    key = manifest_key(manifest.step, manifest.term)
    flat: dict[str, torch.Tensor] = {}
    for meta in manifest.tensors:
        if meta.dtype not in ELEMENT_BYTES:
            raise _corrupt(f"tensor {meta.name} has the unknown dtype {meta.dtype}", key)
        flat[meta.name] = torch.empty(meta.elements, dtype=getattr(torch, meta.dtype))
    missing = {name: tensor.numel() for name, tensor in flat.items()}
    for chunk in manifest.chunks:
        for piece_key, piece in _pieces(read_chunk(run, chunk, key), chunk, key).items():
            name, start = parse_piece_key(piece_key)
            target = flat.get(name)
            if target is None or target.dtype != piece.dtype or start + piece.numel() > target.numel():
                raise _corrupt(f"chunk {chunk.index} does not fit the tensors of the manifest (at {name})", key)
            target[start : start + piece.numel()] = piece
            missing[name] -= piece.numel()
    for name, elements in missing.items():
        if elements:
            raise _corrupt(f"{elements} elements of tensor {name} are in no chunk", key)
    return {meta.name: flat[meta.name].reshape(meta.shape) for meta in manifest.tensors}, manifest.state


def _pieces(data: bytes, chunk: ChunkRef, key: str) -> dict[str, torch.Tensor]:
    try:
        pieces: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise _corrupt(f"chunk {chunk.index} is not a safetensors file: {error}", key) from error
    return pieces


def _corrupt(what: str, key: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(what, where=key, next="`launch resume RUN` goes on at the newest checkpoint that is whole")
