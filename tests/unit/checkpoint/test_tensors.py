"""Tensors to chunks and back."""

from __future__ import annotations

import pytest
import torch

from launcher.checkpoint.catalog import commit_manifest, manifest_key
from launcher.checkpoint.chunks import blob_key
from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart, assemble
from launcher.checkpoint.reader import read_checkpoint
from launcher.checkpoint.writer import PartWriter
from launcher.core.errors import CheckpointCorrupt, UserCodeError
from launcher.core.types import Generation, JsonObject, Rank, Step, Term, WorldSize
from launcher.record.run_store import RunStore
from tests.support.stores import MemoryStore
from tests.unit.checkpoint.parts import RUN, new_run

pytestmark = pytest.mark.unit

STATE: JsonObject = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "scheduler": None}
CHUNK = 256


def zoo() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(16, 12, generator=generator)
    return {
        "wide": wide,
        "transposed": wide.t(),
        "tied": wide,
        "view": wide[3:5, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "bf16": wide.bfloat16(),
        "fp16": wide.half(),
        "fp64": wide.double(),
        "fp8": wide.to(torch.float8_e4m3fn),
        "complex": torch.complex(wide, -wide).conj(),
        "count": torch.tensor(2**53 + 1),
        "scalar": torch.tensor(float("nan")),
        "mask": wide > 0,
        "bytes": torch.arange(256, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(5, generator=generator)),
    }


def save(run: RunStore, tensors: dict[str, torch.Tensor], *, world_size: int, step: int = 7) -> CheckpointManifest:
    writer = PartWriter(run, max_chunk_bytes=CHUNK)
    parts: list[CheckpointPart] = []
    for rank in range(world_size):
        staged = writer.stage(tensors, STATE, step=Step(step), generation=Generation(1), rank=Rank(rank), world_size=WorldSize(world_size))
        parts.append(CheckpointPart.from_json(writer.upload(staged).to_json()))
    manifest = assemble(parts, run_id=RUN, term=Term(1), global_batch_size=8, created_at="now")
    assert commit_manifest(run, manifest)
    return manifest


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        if tensor.dtype == torch.float8_e4m3fn:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
        else:
            torch.testing.assert_close(found[name], tensor.detach().resolve_conj(), rtol=0, atol=0, equal_nan=True)


def test_every_kind_of_tensor_comes_back_and_the_world_size_leaves_no_trace() -> None:
    manifests = []
    for world_size in (1, 2, 3, 40):
        run = new_run(MemoryStore())
        manifest = save(run, zoo(), world_size=world_size)
        tensors, state = read_checkpoint(run, manifest)
        assert_same(tensors, zoo())
        assert state == STATE
        manifests.append(manifest)
    assert all(manifest == manifests[0] for manifest in manifests)
    assert len(manifests[0].chunks) > 10


def test_training_may_go_on_once_it_is_staged() -> None:
    run = new_run(MemoryStore())
    weight = torch.zeros(100)
    writer = PartWriter(run)
    staged = writer.stage({"weight": weight}, STATE, step=Step(1), generation=Generation(1), rank=Rank(0), world_size=WorldSize(1))
    weight.fill_(1)
    part = writer.upload(staged)
    manifest = assemble([part], run_id=RUN, term=Term(1), global_batch_size=8, created_at="now")
    assert read_checkpoint(run, manifest)[0]["weight"].sum() == 0


def test_a_model_without_tensors_can_be_saved() -> None:
    run = new_run(MemoryStore())
    manifest = save(run, {}, world_size=2)
    assert read_checkpoint(run, manifest) == ({}, STATE)


def test_an_unchanged_tensor_keeps_its_chunk() -> None:
    run = new_run(MemoryStore())
    frozen, head = torch.randn(64), torch.randn(64)
    first = save(run, {"a.frozen": frozen, "b.head": head}, world_size=1)
    again = PartWriter(run, max_chunk_bytes=CHUNK)
    staged = again.stage(
        {"a.frozen": frozen, "b.head": head + 1}, STATE, step=Step(8), generation=Generation(1), rank=Rank(0), world_size=WorldSize(1)
    )
    part = again.upload(staged)
    assert part.chunks[0] == first.chunks[0]
    second = assemble([part], run_id=RUN, term=Term(1), global_batch_size=8, created_at="now")
    assert_same(read_checkpoint(run, second)[0], {"a.frozen": frozen, "b.head": head + 1})


def test_a_flipped_bit_in_any_chunk_is_named() -> None:
    memory = MemoryStore()
    run = new_run(memory)
    manifest = save(run, zoo(), world_size=2)
    for chunk in manifest.chunks:
        key = run.key(blob_key(chunk.digest))
        whole = memory.objects[key]
        for position in (0, 8, len(whole) // 2, len(whole) - 1):
            memory.objects[key] = whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]
            with pytest.raises(CheckpointCorrupt) as caught:
                read_checkpoint(run, manifest)
            told = str(caught.value)
            assert f"chunk {chunk.index} " in told
            assert key in told
            assert manifest_key(7, 1) in told
        memory.objects[key] = whole
    read_checkpoint(run, manifest)


def test_a_missing_or_shortened_chunk_is_corrupt() -> None:
    memory = MemoryStore()
    run = new_run(memory)
    manifest = save(run, zoo(), world_size=1)
    key = run.key(blob_key(manifest.chunks[3].digest))
    memory.objects[key] = memory.objects[key][:-1]
    with pytest.raises(CheckpointCorrupt, match="chunk 3 "):
        read_checkpoint(run, manifest)
    del memory.objects[key]
    with pytest.raises(CheckpointCorrupt, match="nothing under this key"):
        read_checkpoint(run, manifest)


def test_what_cannot_be_stored_is_refused_by_name() -> None:
    writer = PartWriter(new_run(MemoryStore()))
    for odd in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)):
        with pytest.raises(UserCodeError, match="state embedding"):
            writer.stage({"embedding": odd}, {}, step=Step(1), generation=Generation(1), rank=Rank(0), world_size=WorldSize(1))
