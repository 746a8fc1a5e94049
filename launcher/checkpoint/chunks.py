"""Chunks in the store: stored once under their digest, verified whenever they are read. Nothing here imports torch."""

from __future__ import annotations

import hashlib

from launcher.checkpoint.manifest import ChunkRef
from launcher.core.errors import CheckpointCorrupt
from launcher.core.store import KeyMissing
from launcher.record.run_store import RunStore


def blob_key(digest: str) -> str:
    """The key of a chunk, relative to the run."""
    return f"blobs/{digest}"


def digest_of(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_chunk(run: RunStore, chunk: ChunkRef, checkpoint: str) -> bytes:
    """The bytes of a chunk. Raises CheckpointCorrupt when it is missing or not what its digest says.

    `checkpoint` is the key of the manifest that names it, for the error.
    """
    key = blob_key(chunk.digest)
    given = ""
    try:
        data = run.store.get(run.key(key))
        found = digest_of(data)
        if found == chunk.digest:
            return data
        given = f"{len(data)} bytes with SHA-256 {found}"
    except KeyMissing:
        given = "nothing under this key"
    raise CheckpointCorrupt(
        f"chunk {chunk.index} of a checkpoint is damaged or missing",
        where=f"{run.uri}/{key}, named by {checkpoint}",
        given=given,
        expected=f"{chunk.size_bytes} bytes with SHA-256 {chunk.digest}",
        next="`launch resume RUN` goes on at the newest checkpoint that is whole",
    )
