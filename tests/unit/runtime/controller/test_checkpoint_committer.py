"""Parts of one generation become one checkpoint: a manifest follows the record of its steps, and everybody hears what became of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.checkpoint.deletion import WAIT_S
from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.clock import ManualClock
from launcher.core.types import Generation, Rank, RunId, Step, Term, WorldSize
from launcher.jobspec.job import JobSpec
from launcher.record.lineage import TermBase
from launcher.record.run_store import LEASE_S, RunStore
from launcher.runtime.controller import checkpoint_committer
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.inbox import CheckpointDecided, HigherTermSeen, Inbox, Item
from launcher.runtime.controller.timing import Timing
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.run_recorder import RunRecorder
from tests.support.recording import ImmediateWriter, job_spec, said
from tests.support.stores import MemoryStore

pytestmark = pytest.mark.unit
T1 = Term(1)
FIRST, SECOND = Save(Step(5), Generation(1)), Save(Step(5), Generation(2))


@pytest.fixture
def run() -> RunStore:
    run = RunStore(MemoryStore(), RunId("r"))
    run.claim_term("me", "now")
    return run


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    return job_spec(checkpoint__keep=1)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recorder(run: RunStore, spec: JobSpec, clock: ManualClock) -> RunRecorder:
    """Of a group all of whose members hold step 5."""
    recorder = RunRecorder(run, spec, ImmediateWriter(), clock, T1, inherit(run), state_folder=Path(), durable=lambda step, of_term: None)  # type: ignore[arg-type]
    recorder.progress.take(said(1, 5))
    recorder.commit(Step(5))
    return recorder


@pytest.fixture
def saver(run: RunStore, spec: JobSpec, recorder: RunRecorder, inbox: Inbox, clock: ManualClock) -> CheckpointCommitter:
    return CheckpointCommitter(run, T1, ImmediateWriter(), recorder, spec, inbox, clock, Timing(taken_over_s=60.0))  # type: ignore[arg-type]


def part(rank: int, *, generation: int = 1, world_size: int = 2) -> CheckpointPart:
    return CheckpointPart(
        step=Step(5),
        generation=Generation(generation),
        rank=Rank(rank),
        world_size=WorldSize(world_size),
        chunk_count=2,
        chunks=(ChunkRef(rank, f"{rank:064d}", 1),),
        tensors=() if rank == 0 else None,
        state={} if rank == 0 else None,
    )


def decided(inbox: Inbox) -> list[tuple[Save, str]]:
    """What the inbox was told since the last call of this."""
    found = everything(inbox)
    assert all(isinstance(item, CheckpointDecided) and item.term == T1 for item in found), found
    return [(Save(item.step, item.generation), item.failure) for item in found if isinstance(item, CheckpointDecided)]


def everything(inbox: Inbox) -> list[Item]:
    found = []
    while (item := inbox.get(0.0)) is not None:
        found.append(item)
    return found


def store_chunks(run: RunStore) -> None:
    for rank in range(2):
        run.store.put(run.key(f"blobs/{rank:064d}"), b"x")


def take_all(saver: CheckpointCommitter, generation: int) -> bool:
    """Whether it is whole with its last part, and not before."""
    saver.take(part(0, generation=generation))
    early = saver.waiting
    saver.take(part(1, generation=generation))
    return saver.waiting and not early


def commit(saver: CheckpointCommitter) -> None:
    saver.commit_due(lambda step, generation: True)
    assert not saver.waiting


def test_a_checkpoint_is_committed_when_all_parts_are_there(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    store_chunks(run)
    saver.take(part(0))
    assert saver.begins(FIRST), "before it has begun no part is kept"
    assert not saver.begins(FIRST)
    assert take_all(saver, 1)
    assert not saver.done(FIRST)
    assert decided(inbox) == []
    commit(saver)
    assert decided(inbox) == [(FIRST, "")]
    assert len(run.names("checkpoints")) == 1
    assert saver.done(FIRST)
    assert not saver.begins(FIRST), "a part that is said again begins nothing"


def test_a_part_that_came_before_the_save_began_is_not_kept(saver: CheckpointCommitter) -> None:
    saver.take(part(0))
    saver.begins(FIRST)
    saver.take(part(1))
    assert not saver.waiting


def test_a_checkpoint_waits_for_the_rows_of_its_steps(
    run: RunStore, spec: JobSpec, saver: CheckpointCommitter, recorder: RunRecorder, inbox: Inbox
) -> None:
    store_chunks(run)
    recorder.begin_term(T1, inherit(run), Step(0))
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.commit_due(lambda step, generation: True)
    assert saver.waiting
    assert (decided(inbox), run.names("checkpoints")) == ([], [])
    recorder.progress.take(said(1, 5))
    recorder.commit(Step(5))
    commit(saver)
    assert decided(inbox) == [(FIRST, "")]
    assert len(run.names("metrics")) == 1, "what the manifest rests on is in the store before it"


def test_a_checkpoint_of_steps_that_were_rolled_back_is_abandoned(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.commit_due(lambda step, generation: (step, generation) != FIRST)
    assert decided(inbox) == [(FIRST, "its steps were rolled back")]
    assert run.names("checkpoints") == []


def test_a_checkpoint_whose_chunk_is_gone_is_not_committed_and_the_next_generation_may_save_the_step(
    run: RunStore, saver: CheckpointCommitter, inbox: Inbox
) -> None:
    saver.begins(FIRST)
    assert take_all(saver, 1)
    commit(saver)
    [(save, failure)] = decided(inbox)
    assert save == FIRST
    assert "gone" in failure
    assert run.names("checkpoints") == []
    store_chunks(run)
    assert saver.begins(SECOND)
    assert take_all(saver, 2)
    commit(saver)
    assert decided(inbox) == [(SECOND, "")]


def test_a_fenced_controller_reports_no_checkpoint(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    run.claim_term("somebody else", "later")
    commit(saver)
    assert everything(inbox) == [HigherTermSeen()]


def test_a_failed_part_abandons_the_checkpoint_once(saver: CheckpointCommitter, inbox: Inbox) -> None:
    saver.begins(FIRST)
    saver.abandon(FIRST, "disk full")
    saver.abandon(FIRST, "disk full")
    assert decided(inbox) == [(FIRST, "disk full")]
    assert saver.done(FIRST)
    assert not take_all(saver, 1)


def test_a_step_abandoned_in_one_generation_is_saved_in_the_next_from_its_parts_alone(
    run: RunStore, saver: CheckpointCommitter, inbox: Inbox
) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    saver.take(part(0))
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided(inbox) == [(FIRST, "a worker was lost")]
    assert saver.begins(SECOND)
    saver.take(part(1))
    assert not saver.waiting, "a late part of the generation that is gone counts for nothing"
    saver.take(part(0, generation=2))
    assert not saver.waiting
    saver.take(part(1, generation=2))
    assert saver.waiting
    commit(saver)
    assert decided(inbox) == [(SECOND, "")]
    assert len(run.names("checkpoints")) == 1


def test_what_is_whole_but_not_committed_yet_is_not_abandoned(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided(inbox) == []
    commit(saver)
    assert decided(inbox) == [(FIRST, "")]


def test_a_part_that_comes_after_its_generation_was_abandoned_begins_nothing(saver: CheckpointCommitter, inbox: Inbox) -> None:
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert saver.done(FIRST), "whoever has a part may forget it"
    assert not saver.begins(FIRST)
    assert saver.begins(SECOND)
    assert decided(inbox) == []


def test_what_is_whole_is_not_abandoned_and_needs_no_second_save(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    commit(saver)
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided(inbox) == [(FIRST, "")]
    assert saver.done(SECOND)
    assert not saver.begins(SECOND)


def test_parts_that_an_earlier_controller_had_begun_are_awaited_for_a_while(
    saver: CheckpointCommitter, inbox: Inbox, clock: ManualClock
) -> None:
    assert saver.take_over(FIRST)
    saver.take(part(0))
    clock.advance(60.0)
    saver.abandon_overdue()
    assert decided(inbox) == []
    clock.advance(1.0)
    saver.abandon_overdue()
    [(save, failure)] = decided(inbox)
    assert save == FIRST
    assert "does not come" in failure


def test_what_was_taken_over_and_is_whole_is_not_overdue(
    run: RunStore, saver: CheckpointCommitter, inbox: Inbox, clock: ManualClock
) -> None:
    store_chunks(run)
    saver.take_over(FIRST)
    assert take_all(saver, 1)
    clock.advance(100.0)
    saver.abandon_overdue()
    commit(saver)
    assert decided(inbox) == [(FIRST, "")]


def test_a_term_that_rolls_back_knows_nothing_of_what_was_begun_and_saves_steps_before_its_start_no_more(
    saver: CheckpointCommitter, inbox: Inbox
) -> None:
    saver.begins(FIRST)
    saver.begin_term(Term(2), Step(6), [])
    assert saver.done(FIRST)
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided(inbox) == [], "of another line: nobody waits for it"
    later = Save(Step(7), Generation(2))
    assert saver.begins(later)
    saver.abandon(later, "disk full")
    assert everything(inbox) == [CheckpointDecided(Step(7), Generation(2), Term(2), "disk full")]


def test_a_step_that_was_committed_meanwhile_is_committed_once(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> None:
    """Both generations saved it whole before either was committed."""
    store_chunks(run)
    for save in (FIRST, SECOND):
        saver.begins(save)
        for rank in range(2):
            saver.take(part(rank, generation=save.generation))
    commit(saver)
    assert decided(inbox) == [(FIRST, ""), (SECOND, "")]
    assert len(run.names("checkpoints")) == 1


# letting go


@pytest.fixture
def old(run: RunStore, saver: CheckpointCommitter, inbox: Inbox) -> RunStore:
    """A run that keeps one checkpoint and has two, the older one of which is in the trash."""
    run.create_base(T1, TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    run.store.put(run.key("checkpoints/000000000003-000000000001.json"), b'{"chunks": []}')
    store_chunks(run)
    saver.begins(FIRST)
    take_all(saver, 1)
    commit(saver)
    saver.retain()
    decided(inbox)
    assert len(run.names("trash")) == 1
    return run


@pytest.fixture
def pauses(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long finish_deletion slept, in seconds."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(checkpoint_committer, "time", SimpleNamespace(sleep=sleep))
    return slept


def test_chunks_of_a_checkpoint_under_way_are_not_let_go(run: RunStore, saver: CheckpointCommitter, clock: ManualClock) -> None:
    store_chunks(run)
    run.store.put(run.key("blobs/" + "f" * 64), b"of a save that was abandoned")
    saver.begins(FIRST)
    take_all(saver, 1)
    commit(saver)
    later = replace(part(0), step=Step(7), chunks=(ChunkRef(0, "e" * 64, 1),))
    run.store.put(run.key("blobs/" + "e" * 64), b"x")
    saver.begins(Save(Step(7), Generation(1)))
    saver.take(later)
    for _ in range(3):
        saver.retain()
        clock.advance(WAIT_S)
    assert "e" * 64 in run.names("blobs")
    assert "f" * 64 not in run.names("blobs")


def test_nothing_is_let_go_before_there_is_a_checkpoint(run: RunStore, saver: CheckpointCommitter) -> None:
    run.store.put(run.key("checkpoints/000000000003-000000000001.json"), b'{"chunks": []}')
    saver.retain()
    assert run.names("trash") == []


def test_after_the_end_what_is_in_the_trash_is_deleted(old: RunStore, saver: CheckpointCommitter, pauses: list[float]) -> None:
    saver.finish_deletion(LEASE_S)
    assert old.names("trash") == []
    assert old.names("checkpoints") == ["000000000005-000000000001.json"]
    assert len(pauses) <= 3


def test_a_later_term_deletes_itself(old: RunStore, saver: CheckpointCommitter, pauses: list[float]) -> None:
    old.claim_term("somebody else", "later")
    saver.finish_deletion(LEASE_S)
    assert (len(old.names("trash")), pauses) == (1, [])


def test_a_new_term_of_the_same_controller_waits_anew_before_it_deletes(
    old: RunStore, saver: CheckpointCommitter, clock: ManualClock, pauses: list[float]
) -> None:
    clock.advance(100.0)
    term = old.claim_term("me", "later")
    old.create_base(term, TermBase(from_term=T1, checkpoint_step=Step(5), adopted_step=None))
    saver.begin_term(term, Step(5), [Step(5)])
    saver.finish_deletion(1.0)
    assert (len(old.names("trash")), pauses) == (1, [1.0, 1.0, 1.0])
    saver.finish_deletion(LEASE_S)
    assert old.names("trash") == []
