"""A checkpoint's whole life, on a local folder and on S3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launcher.checkpoint.catalog import commit_manifest, list_checkpoints, read_manifest
from launcher.checkpoint.chunks import blob_key
from launcher.checkpoint.deletion import WAIT_S, Deletion
from launcher.checkpoint.manifest import CheckpointManifest, ChunkRef, assemble
from launcher.checkpoint.reader import read_checkpoint
from launcher.checkpoint.writer import PartWriter
from launcher.core.clock import ManualClock
from launcher.core.errors import CheckpointCorrupt
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, Rank, Step, Term, WorldSize
from launcher.record.lineage import LineageEntry, TermBase, lineage
from launcher.record.run_store import RunStore
from tests.unit.checkpoint.parts import newest_whole

pytestmark = pytest.mark.storage

STATE: JsonObject = {"lr": 0.1}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"frozen": torch.ones(300, 300), "weight": torch.randn(300, 300, generator=generator), "step": torch.tensor(step)}


def chain_of(run: RunStore) -> list[LineageEntry]:
    return lineage(run.terms()[1])


def take_office(run: RunStore, from_term: int | None, checkpoint: int | None) -> Term:
    term = run.claim_term("test", "now")
    base = TermBase(
        from_term=None if from_term is None else Term(from_term),
        checkpoint_step=None if checkpoint is None else Step(checkpoint),
        adopted_step=None,
    )
    assert run.create_base(term, base)
    return term


def save(run: RunStore, term: Term, step: int, world_size: int) -> tuple[CheckpointManifest, bool]:
    writer = PartWriter(run, max_chunk_bytes=128 * 1024)
    staged = [
        writer.stage(tensors(step), STATE, step=Step(step), generation=Generation(1), rank=Rank(rank), world_size=WorldSize(world_size))
        for rank in range(world_size)
    ]
    parts = [writer.upload(share) for share in staged]
    manifest = assemble(parts, run_id=run.run_id, term=term, global_batch_size=8, created_at="now")
    return manifest, commit_manifest(run, manifest)


def test_save_resume_fall_back_and_delete(run: RunStore) -> None:
    clock = ManualClock()
    first = take_office(run, None, None)
    for step, world_size in ((1, 1), (2, 2), (3, 3)):
        assert save(run, first, step, world_size)[1]
    second = take_office(run, first, 2)
    assert not save(run, first, 4, 1)[1]
    chain = chain_of(run)
    assert [info.step for info in list_checkpoints(run, chain)] == [2, 1]
    manifest, committed = save(run, second, 3, 2)
    assert committed
    restored, state = read_checkpoint(run, manifest)
    assert state == STATE
    for name, tensor in tensors(3).items():
        assert torch.equal(restored[name], tensor)

    deletion = Deletion(run, second, clock)
    newest = list_checkpoints(run, chain)[0]
    deletion.name(keep=1, newest_whole=newest)
    clock.advance(WAIT_S)
    deletion.collect()
    assert [(info.step, info.term) for info in list_checkpoints(run, chain)] == [(3, 2), (2, 1)]
    for info in list_checkpoints(run, chain):
        read_checkpoint(run, read_manifest(run, info))

    weight = next(chunk for chunk in manifest.chunks if chunk.digest not in {item.digest for item in older(run, chain)})
    run.store.put(run.key(blob_key(weight.digest)), b"damaged")
    with pytest.raises(CheckpointCorrupt, match=weight.digest):
        read_checkpoint(run, manifest)
    found, skipped = newest_whole(run)
    assert found is not None
    assert (found.step, len(skipped)) == (2, 1)


def older(run: RunStore, chain: list[LineageEntry]) -> tuple[ChunkRef, ...]:
    return read_manifest(run, list_checkpoints(run, chain)[1]).chunks


def test_a_checkpoint_moves_from_a_folder_to_another_place_byte_by_byte(run: RunStore, tmp_path: Path) -> None:
    """Nothing in it says where it is stored."""
    term = take_office(run, None, None)
    save(run, term, 1, 2)
    copy = RunStore(open_store(str(tmp_path / "copy"), create=True), run.run_id)
    for item in run.store.list(""):
        copy.store.put(item.key, run.store.get(item.key))
    found, _ = newest_whole(copy)
    assert found is not None
    assert torch.equal(read_checkpoint(copy, read_manifest(copy, found))[0]["weight"], tensors(1)["weight"])
