from __future__ import annotations

import json

import pytest

from launcher.checkpoint.catalog import (
    CheckpointInfo,
    all_checkpoints,
    commit_manifest,
    list_checkpoints,
    read_manifest,
)
from launcher.checkpoint.chunks import blob_key, digest_of
from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt, StoreUnavailable
from launcher.core.types import Step, Term
from launcher.record.lineage import LineageEntry, lineage
from launcher.record.run_store import RunStore
from tests.support.stores import ForgetfulStore, MemoryStore
from tests.unit.checkpoint.parts import begin_term, manifest_of, new_run, newest_whole, save

pytestmark = pytest.mark.unit


def info(step: int, term: int) -> CheckpointInfo:
    return CheckpointInfo(Step(step), Term(term))


def chain_of(run: RunStore) -> list[LineageEntry]:
    return lineage(run.terms()[1])


def listed(run: RunStore) -> list[CheckpointInfo]:
    return list_checkpoints(run, chain_of(run))


def discard(run: RunStore, *infos: CheckpointInfo, blobs: tuple[bytes, ...] = ()) -> None:
    entry = {"term": 1, "manifests": [item.key for item in infos], "blobs": [digest_of(data) for data in blobs]}
    assert run.claim("trash/e1.json", entry)


def test_a_checkpoint_exists_once_it_is_committed_and_reads_back() -> None:
    run = new_run(MemoryStore())
    term = begin_term(run)
    assert list_checkpoints(run, chain_of(run)) == []
    assert save(run, 5, term, b"a")
    assert save(run, 10, term, b"b")
    assert listed(run) == [info(10, 1), info(5, 1)]
    assert list_checkpoints(run, chain_of(run))[0] == info(10, 1)
    assert info(10, 1).key == "checkpoints/000000000010-000000000001.json"
    assert read_manifest(run, info(10, 1)) == manifest_of(10, 1, b"b")


def test_only_the_lineage_counts() -> None:
    run = new_run(MemoryStore())
    begin_term(run)
    for step in (5, 10, 15):
        save(run, step, 1, b"%d" % step)
    begin_term(run, from_term=1, checkpoint=10)
    save(run, 20, 1, b"a fenced controller goes on")
    save(run, 15, 2, b"again")
    assert listed(run) == [info(15, 2), info(10, 1), info(5, 1)]
    assert len(all_checkpoints(run)) == 5


def test_what_the_trash_names_is_gone_but_for_what_a_base_names() -> None:
    run = new_run(MemoryStore())
    begin_term(run)
    for step in (5, 10):
        save(run, step, 1, b"%d" % step)
    discard(run, info(5, 1), info(10, 1))
    assert listed(run) == []
    begin_term(run, from_term=1, checkpoint=10)
    assert listed(run) == [info(10, 1)]


def test_a_commit_counts_only_without_a_higher_term() -> None:
    run = new_run(MemoryStore())
    term = begin_term(run)
    run.claim_term("another", "now")
    assert not save(run, 5, term, b"a")


@pytest.mark.parametrize("answer", ["exists", "error"])
def test_a_lost_answer_is_resolved_by_reading_back(answer: str) -> None:
    store = ForgetfulStore(answer=answer)  # type: ignore[arg-type]
    run = new_run(store)
    term = begin_term(run)
    store.forgets = True
    manifest = manifest_of(5, term, b"a")
    if answer == "error":
        with pytest.raises(StoreUnavailable):
            commit_manifest(run, manifest)
    assert commit_manifest(run, manifest)
    assert listed(run) == [info(5, 1)]


def test_another_checkpoint_under_the_same_key_is_no_commit() -> None:
    run = new_run(MemoryStore())
    term = begin_term(run)
    assert save(run, 5, term, b"a")
    with pytest.raises(CheckpointAbandoned, match="another checkpoint"):
        save(run, 5, term, b"b")
    assert read_manifest(run, info(5, 1)) == manifest_of(5, 1, b"a")


def test_a_chunk_named_in_the_trash_is_not_committed() -> None:
    run = new_run(MemoryStore())
    term = begin_term(run)
    save(run, 5, term, b"frozen", b"old")
    discard(run, blobs=(b"old",))
    with pytest.raises(CheckpointAbandoned, match="about to be deleted"):
        save(run, 10, term, b"frozen", b"old")
    assert listed(run) == [info(5, 1)]


def test_the_newest_whole_one_is_found_and_the_others_are_told() -> None:
    store = MemoryStore()
    run = new_run(store)
    term = begin_term(run)
    for step in (5, 10, 15, 20):
        save(run, step, term, b"shared", b"%d" % step)
    store.objects[run.key(blob_key(digest_of(b"20")))] = b"21"
    del store.objects[run.key(blob_key(digest_of(b"15")))]
    store.objects[run.key(info(10, 1).key)] = b"{"
    found, skipped = newest_whole(run)
    assert found == info(5, 1)
    assert read_manifest(run, found) == manifest_of(5, 1, b"shared", b"5")
    told = [str(error) for error in skipped]
    assert digest_of(b"20") in told[0]
    assert info(20, 1).key in told[0]
    assert "nothing under this key" in told[1]
    assert info(10, 1).key in told[2]
    del store.objects[run.key(blob_key(digest_of(b"shared")))]
    assert newest_whole(run)[0] is None


def test_a_flipped_bit_anywhere_in_a_manifest_is_found() -> None:
    store = MemoryStore()
    run = new_run(store)
    save(run, 5, begin_term(run), b"a", b"b")
    key = run.key(info(5, 1).key)
    whole = store.objects[key]
    nonce = json.loads(whole)["nonce"].encode()
    damaged = 0
    for position in range(len(whole)):
        store.objects[key] = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        try:
            assert read_manifest(run, info(5, 1)) == manifest_of(5, 1, b"a", b"b")
        except CheckpointCorrupt as error:
            damaged += info(5, 1).key in error.where
    assert damaged >= len(whole) - len(nonce) - len('"nonce":"",')


def test_a_manifest_under_a_wrong_key_is_corrupt() -> None:
    store = MemoryStore()
    run = new_run(store)
    save(run, 5, begin_term(run), b"a")
    store.objects[run.key(info(6, 1).key)] = store.objects[run.key(info(5, 1).key)]
    with pytest.raises(CheckpointCorrupt, match="not the one that its key says"):
        read_manifest(run, info(6, 1))
