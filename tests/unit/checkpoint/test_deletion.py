from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.checkpoint.catalog import CheckpointInfo, all_checkpoints, list_checkpoints, read_manifest
from launcher.checkpoint.chunks import blob_key, digest_of, read_chunk
from launcher.checkpoint.deletion import WAIT_S, Deletion
from launcher.core.clock import ManualClock
from launcher.core.types import Step, Term
from launcher.record.lineage import lineage
from launcher.record.run_store import LEASE_S, RunStore
from tests.support.stores import Killed, MemoryStore, MortalStore
from tests.unit.checkpoint.parts import begin_term, new_run, newest_whole, save

pytestmark = pytest.mark.unit


def info(step: int, term: int = 1) -> CheckpointInfo:
    return CheckpointInfo(Step(step), Term(term))


def listed(run: RunStore) -> list[CheckpointInfo]:
    return list_checkpoints(run, lineage(run.terms()[1]))


def blobs(run: RunStore) -> set[str]:
    return set(run.names("blobs"))


def digests(*contents: bytes) -> set[str]:
    return {digest_of(data) for data in contents}


def all_readable(run: RunStore) -> None:
    for item in listed(run):
        for chunk in read_manifest(run, item).chunks:
            read_chunk(run, chunk, item.key)


def nothing_named_is_gone(run: RunStore) -> None:
    for item in all_checkpoints(run):
        for chunk in read_manifest(run, item).chunks:
            read_chunk(run, chunk, item.key)


def five_checkpoints(run: RunStore) -> Term:
    term = begin_term(run)
    for step in (1, 2, 3, 4, 5):
        assert save(run, step, term, b"frozen", b"step %d" % step)
    return term


def test_named_then_gone_after_two_lease_times() -> None:
    run, clock = new_run(MemoryStore()), ManualClock()
    deletion = Deletion(run, five_checkpoints(run), clock)
    entry = deletion.name(keep=2, newest_whole=info(5))
    assert entry is not None
    assert set(entry.manifests) == {info(1).key, info(2).key, info(3).key}
    assert set(entry.blobs) == digests(b"step 1", b"step 2", b"step 3")
    assert listed(run) == [info(5), info(4)]
    assert deletion.name(keep=2, newest_whole=info(5)) is None
    clock.advance(WAIT_S - 0.1)
    assert deletion.collect() == []
    assert len(blobs(run)) == 6
    clock.advance(0.1)
    assert deletion.collect() == [entry]
    assert blobs(run) == digests(b"frozen", b"step 4", b"step 5")
    assert run.names("checkpoints") == [info(4).key.removeprefix("checkpoints/"), info(5).key.removeprefix("checkpoints/")]
    assert run.names("trash") == []
    all_readable(run)


def test_a_new_controller_waits_by_its_own_clock() -> None:
    run = new_run(MemoryStore())
    Deletion(run, five_checkpoints(run), ManualClock()).name(keep=2, newest_whole=info(5))
    clock = ManualClock()
    deletion = Deletion(run, begin_term(run, from_term=1, checkpoint=5), clock)
    assert deletion.collect() == []
    clock.advance(WAIT_S)
    assert len(deletion.collect()) == 1
    assert listed(run) == [info(5), info(4)]


def test_a_fenced_controller_names_and_deletes_nothing() -> None:
    run, clock = new_run(MemoryStore()), ManualClock()
    deletion = Deletion(run, five_checkpoints(run), clock)
    deletion.name(keep=3, newest_whole=info(5))
    run.claim_term("another", "now")
    clock.advance(WAIT_S)
    assert deletion.collect() == []
    assert deletion.name(keep=1, newest_whole=info(5)) is None
    assert len(run.names("checkpoints")) == 5
    assert len(blobs(run)) == 6


def test_one_that_is_fenced_while_it_deletes_stops() -> None:
    clock = ManualClock()

    class SlowStore(MemoryStore):
        deleted = 0

        def delete(self, keys: object) -> None:
            super().delete(keys)  # type: ignore[arg-type]
            self.deleted += 1
            if self.deleted == 2:
                run.claim_term("another", "now")
                clock.advance(LEASE_S)

    store = SlowStore()
    run = new_run(store)
    deletion = Deletion(run, five_checkpoints(run), clock)
    deletion.name(keep=1, newest_whole=info(5))
    clock.advance(WAIT_S)
    assert deletion.collect() == []
    assert store.deleted == 2
    assert len(run.names("trash")) == 1


def test_what_a_base_or_a_pin_names_by_now_comes_back_whole() -> None:
    run = new_run(MemoryStore())
    old = Deletion(run, five_checkpoints(run), ManualClock())
    old.name(keep=1, newest_whole=info(5))  # while its successor takes 3 as its base
    clock = ManualClock()
    deletion = Deletion(run, begin_term(run, from_term=1, checkpoint=3), clock)
    run.claim(f"pins/{info(2).key.removeprefix('checkpoints/')}", {})
    assert listed(run) == [info(3)]
    deletion.collect()
    clock.advance(WAIT_S)
    deletion.collect()
    assert listed(run) == [info(3), info(2)]
    assert digests(b"frozen", b"step 2", b"step 3") <= blobs(run)
    assert not digests(b"step 1", b"step 4") & blobs(run)
    all_readable(run)


def test_chunks_in_flight_stay() -> None:
    run, clock = new_run(MemoryStore()), ManualClock()
    deletion = Deletion(run, five_checkpoints(run), clock)
    entry = deletion.name(keep=3, newest_whole=info(5), in_flight=digests(b"step 1"))
    assert entry is not None
    assert set(entry.blobs) == digests(b"step 2")
    clock.advance(WAIT_S)
    deletion.collect(in_flight=digests(b"step 2"))
    assert digests(b"step 1", b"step 2") <= blobs(run)
    assert listed(run) == [info(5), info(4), info(3)]


def test_chunks_of_an_abandoned_save_go_when_no_checkpoint_has_named_them_for_a_while() -> None:
    run, clock = new_run(MemoryStore()), ManualClock()
    term = five_checkpoints(run)
    for data in (b"abandoned", b"step 6"):
        run.store.put(run.key(blob_key(digest_of(data))), data)
    deletion = Deletion(run, term, clock)
    assert deletion.name(keep=5, newest_whole=info(5)) is None
    assert deletion.name(keep=5, newest_whole=info(5)) is None, "checkpoints that are committed in quick succession"
    assert save(run, 6, term, b"frozen", b"step 6")
    clock.advance(WAIT_S)
    entry = deletion.name(keep=6, newest_whole=info(6))
    assert entry is not None
    assert set(entry.blobs) == digests(b"abandoned")
    clock.advance(WAIT_S)
    deletion.collect()
    assert blobs(run) == digests(b"frozen", *(b"step %d" % step for step in range(1, 7)))


def test_a_controller_that_computes_the_same_steps_again_can_commit_them() -> None:
    """The newest checkpoint is damaged, training goes back behind it and comes to the same chunks again."""
    store, clock = MemoryStore(), ManualClock()
    run = new_run(store)
    five_checkpoints(run)
    store.objects[run.key(blob_key(digest_of(b"step 5")))] = b"damaged"
    term = begin_term(run, from_term=1, checkpoint=4)
    deletion = Deletion(run, term, clock)
    deletion.name(keep=1, newest_whole=info(4))
    assert save(run, 5, term, b"frozen", b"step 5")
    for _ in range(2):
        deletion.name(keep=1, newest_whole=info(5, term))
        clock.advance(WAIT_S)
        deletion.collect()
    assert listed(run) == [info(5, term), info(4)]  # 4 is what the base names
    assert info(5).key.removeprefix("checkpoints/") not in run.names("checkpoints")
    all_readable(run)


def a_life(run: RunStore, seen: Callable[[], None] = lambda: None) -> None:
    """A controller begins its term at the newest checkpoint, saves, names, waits, deletes, saves."""
    clock = ManualClock()
    found, _ = newest_whole(run)
    term = begin_term(run, from_term=found.term if found else None, checkpoint=found.step if found else None)
    deletion = Deletion(run, term, clock)
    start = found.step if found else 0
    for step in range(start + 1, start + 7):
        deletion.collect()
        save(run, step, term, b"frozen", b"step %d" % step, b"pair %d" % (step // 2))
        deletion.name(keep=2, newest_whole=info(step, term))
        clock.advance(WAIT_S / 2)
        seen()
    clock.advance(WAIT_S)
    deletion.collect()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_point_loses_nothing_that_is_needed(when: str) -> None:
    counting = MortalStore(MemoryStore())
    a_life(new_run(counting))
    assert counting.writes > 30
    for dies_at in range(1, counting.writes + 1):
        memory = MemoryStore()
        run = new_run(memory)
        promised: list[CheckpointInfo] = []

        def promise(run: RunStore = run, promised: list[CheckpointInfo] = promised) -> None:
            promised.append(listed(run)[0])

        with pytest.raises(Killed):
            a_life(new_run(MortalStore(memory, dies_at=dies_at, when=when)), promise)  # type: ignore[arg-type]
        nothing_named_is_gone(run)
        if promised:
            assert list_checkpoints(run, lineage(run.terms()[1]))[0].step >= promised[-1].step
        a_life(run)
        nothing_named_is_gone(run)
        assert len(listed(run)) >= 2
        assert run.names("trash") == []
        named = {chunk.digest for item in listed(run) for chunk in read_manifest(run, item).chunks}
        assert blobs(run) == named
