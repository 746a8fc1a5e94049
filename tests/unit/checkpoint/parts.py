"""Checkpoints without torch: chunks of plain bytes."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.checkpoint.catalog import CheckpointInfo, commit_manifest, list_checkpoints, read_manifest
from launcher.checkpoint.chunk_plan import TensorMeta
from launcher.checkpoint.chunks import blob_key, digest_of, read_chunk
from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart, ChunkRef, assemble
from launcher.core.errors import CheckpointCorrupt
from launcher.core.store import ObjectStore
from launcher.core.types import Generation, JsonObject, Rank, RunId, Step, Term, WorldSize
from launcher.record.lineage import TermBase, lineage
from launcher.record.run_store import RunStore

RUN = RunId("r1")


def new_run(store: ObjectStore) -> RunStore:
    return RunStore(store, RUN)


def begin_term(run: RunStore, *, from_term: int | None = None, checkpoint: int | None = None, adopted: int | None = None) -> Term:
    """Claim the next term and create its base."""
    term = run.claim_term("test", "2026-01-01T00:00:00.000Z")
    base = TermBase(
        from_term=None if from_term is None else Term(from_term),
        checkpoint_step=None if checkpoint is None else Step(checkpoint),
        adopted_step=None if adopted is None else Step(adopted),
    )
    assert run.create_base(term, base)
    return term


def part(step: int, chunks: Mapping[int, bytes], *, rank: int = 0, world_size: int = 1, generation: int = 1, count: int) -> CheckpointPart:
    state: JsonObject = {"step": step}
    return CheckpointPart(
        step=Step(step),
        generation=Generation(generation),
        rank=Rank(rank),
        world_size=WorldSize(world_size),
        chunk_count=count,
        chunks=tuple(ChunkRef(index, digest_of(data), len(data)) for index, data in chunks.items()),
        tensors=(TensorMeta("weight", (4,), "float32"),) if rank == 0 else None,
        state=state if rank == 0 else None,
    )


def manifest_of(step: int, term: int, *contents: bytes) -> CheckpointManifest:
    whole = part(step, dict(enumerate(contents)), count=len(contents))
    return assemble([whole], run_id=RUN, term=Term(term), global_batch_size=8, created_at="2026-01-01T00:00:00.000Z")


def save(run: RunStore, step: int, term: int, *contents: bytes) -> bool:
    """Upload the chunks and commit."""
    for data in contents:
        run.store.put(run.key(blob_key(digest_of(data))), data)
    return commit_manifest(run, manifest_of(step, term, *contents))


def newest_whole(run: RunStore) -> tuple[CheckpointInfo | None, list[CheckpointCorrupt]]:
    """The newest checkpoint of the run whose manifest and chunks are all readable, and why newer ones are not."""
    skipped: list[CheckpointCorrupt] = []
    for info in list_checkpoints(run, lineage(run.terms()[1])):
        try:
            for chunk in read_manifest(run, info).chunks:
                read_chunk(run, chunk, info.key)
        except CheckpointCorrupt as error:
            skipped.append(error)
            continue
        return info, skipped
    return None, skipped
