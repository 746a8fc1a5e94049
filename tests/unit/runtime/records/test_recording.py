"""Rows wait until they are committed; the ledger names each step once; a manifest follows its events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.config.load import compose
from launcher.core.clock import ManualClock
from launcher.core.errors import LauncherError
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, Rank, RunId, Step, Term, WorldSize
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.run_store import RunStore
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.records.event_log import EventLog
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.progress import Progress, StepRow

pytestmark = pytest.mark.unit
T1 = Term(1)


class Immediate:
    """A writer that writes at once, in order."""

    def __init__(self) -> None:
        self.failed: list[LauncherError] = []

    def submit(self, write: Callable[[], None]) -> None:
        write()


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore(open_store(str(tmp_path), create=True), RunId("r"))


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    config = compose(["trainer.global_batch_size=64"], folder=Path(__file__).parents[4])
    return JobSpec(
        run_id=RunId("r"), name="r", config=config, code=CodeRef(digest=""), versions={}, submitted_at="2026-01-01T00:00:00.000Z"
    )


def row(step: int, seconds: float = 1.0, loss: float = 0.5) -> JsonObject:
    return {"step": step, "time": "", "seconds": seconds, "loss": loss, "samples_per_s": 1.0}


def said(first: int, last: int, generation: int = 1, **figures: float) -> JsonObject:
    """A row as a worker says it."""
    return {"kind": "row", "first": first, "generation": generation, "row": row(last, **figures)}


@pytest.fixture
def progress(run: RunStore, spec: JobSpec) -> Progress:
    return Progress.after(inherit(run), Step(0), spec)


def ranges(rows: list[StepRow]) -> list[tuple[int, int, int]]:
    return [(each.first, each.last, each.generation) for each in rows]


def test_rows_wait_for_the_slowest_member_and_are_taken_once(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20, loss=0.25))
    progress.take(said(1, 10))
    assert progress.committed(9) == []
    assert ranges(progress.committed(15)) == [(1, 10, 1)]
    assert (progress.step, progress.train_loss) == (15, 0.5)
    assert [(each.first, each.row["step"]) for each in progress.committed(20)] == [(11, 20)]
    assert progress.train_loss == 0.25
    assert progress.samples_per_s == 640.0
    assert progress.committed(20) == []
    assert (progress.step, progress.seconds) == (20, 2.0)
    assert progress.committed(3) == []
    assert progress.step == 20, "a late word takes nothing back"


def test_where_a_row_is_missing_none_is_taken_until_it_was_said_again(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(21, 30))
    assert ranges(progress.committed(30)) == [(1, 10, 1)]
    assert not progress.lacks_rows(30, most=20)
    assert progress.lacks_rows(31, most=20)
    for first in (1, 11, 21):
        progress.take(said(first, first + 9))
    assert ranges(progress.committed(30)) == [(11, 20, 1), (21, 30, 1)]
    assert not progress.lacks_rows(31, most=1)


def test_what_nobody_holds_any_more_is_dropped_and_taken_again_from_the_next_generation(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20, loss=9.0))
    progress.committed(10)
    progress.restart(17)
    assert progress.lacks_rows(17, most=6)
    progress.take(said(18, 20, generation=2))
    assert progress.committed(20) == [], "steps 11 to 17 have no row yet"
    progress.take(said(11, 17, loss=0.75))
    progress.take(said(18, 20, generation=2, loss=0.25))
    assert ranges(progress.committed(17)) == [(11, 17, 1)]
    assert progress.train_loss == 0.75
    assert ranges(progress.committed(20)) == [(18, 20, 2)]
    assert progress.seconds == 3.0


def test_a_row_that_ends_where_the_next_generation_begins_stays(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 17))
    progress.restart(17)
    progress.take(said(11, 17))
    assert ranges(progress.committed(17)) == [(1, 10, 1), (11, 17, 1)]


def test_what_was_passed_on_is_never_taken_back(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20))
    progress.committed(20)
    progress.restart(12)
    progress.take(said(11, 20, generation=2))
    progress.take(said(13, 20, generation=2))
    assert progress.committed(20) == []
    progress.take(said(13, 25, generation=2))
    assert ranges(progress.committed(25)) == [(21, 25, 2)], "of a row that overlaps, the rest counts"


def test_a_new_term_goes_on_where_the_ledger_of_earlier_ones_ends(run: RunStore, spec: JobSpec) -> None:
    progress = Progress.after(inherit(run), Step(20), spec)
    progress.take(said(11, 20))
    progress.take(said(21, 30))
    assert ranges(progress.committed(30)) == [(21, 30, 1)]


def test_an_evaluation_is_taken_once(progress: Progress) -> None:
    assert progress.evaluated(20, {"accuracy": 0.5})
    assert not progress.evaluated(20, {"accuracy": 0.5})
    assert progress.metrics == {"accuracy": 0.5}


def test_the_ledger_joins_ranges_of_one_generation_and_splits_at_the_next(run: RunStore) -> None:
    recorder = EventLog(run, T1, Immediate(), ManualClock())  # type: ignore[arg-type]
    durable: list[int] = []
    for first, last, generation in ((1, 10, 1), (11, 20, 1), (21, 25, 2)):
        recorder.steps(row(last), first=first, generation=Generation(generation), batch=64)
    recorder.flush(ledger=False, durable=durable.append)
    assert durable == []
    recorder.flush(ledger=True, durable=durable.append)
    assert durable == [25]
    events = [event for _, _, name in run.segments("events") for event in run.segment("events", name)]
    assert [(event["first"], event["last"], event["generation"], event["samples"]) for event in events] == [
        (1, 20, 1, [0, 1280]),
        (21, 25, 2, [1280, 1600]),
    ]
    assert inherit_step(run) == [10, 20, 25]


def inherit_step(run: RunStore) -> list[object]:
    return [each["step"] for _, _, name in run.segments("metrics") for each in run.segment("metrics", name)]


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


FIRST, SECOND = Save(Step(5), Generation(1)), Save(Step(5), Generation(2))
Decided = list[tuple[Save | None, str]]


@pytest.fixture
def decided() -> Decided:
    return []


@pytest.fixture
def saver(run: RunStore, spec: JobSpec, decided: Decided) -> CheckpointCommitter:
    run.claim_term("me", "now")
    return CheckpointCommitter(
        run,
        T1,
        Immediate(),  # type: ignore[arg-type]
        spec,
        decided=lambda save, failure, term: decided.append((save, failure)),
        fenced=lambda: decided.append((None, "fenced")),
        clock=ManualClock(),
    )


def store_chunks(run: RunStore) -> None:
    for rank in range(2):
        run.store.put(run.key(f"blobs/{rank:064d}"), b"x")


def take_all(saver: CheckpointCommitter, generation: int) -> bool:
    return [saver.take(part(rank, generation=generation)) for rank in range(2)] == [False, True]


def test_a_checkpoint_is_committed_when_all_parts_are_there(run: RunStore, saver: CheckpointCommitter, decided: Decided) -> None:
    store_chunks(run)
    assert not saver.take(part(0)), "nobody has begun it"
    assert saver.begins(FIRST)
    assert not saver.begins(FIRST)
    assert take_all(saver, 1)
    assert not saver.done(FIRST)
    saver.commit(FIRST)
    assert decided == [(FIRST, "")]
    assert len(run.names("checkpoints")) == 1
    assert saver.done(FIRST)
    assert not saver.begins(FIRST), "a part that is said again begins nothing"


def test_a_checkpoint_whose_chunk_is_gone_is_not_committed_and_the_next_generation_may_save_the_step(
    run: RunStore, saver: CheckpointCommitter, decided: Decided
) -> None:
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.commit(FIRST)
    [(save, failure)] = decided
    assert save == FIRST
    assert "gone" in failure
    assert run.names("checkpoints") == []
    store_chunks(run)
    assert saver.begins(SECOND)
    assert take_all(saver, 2)
    saver.commit(SECOND)
    assert decided[1:] == [(SECOND, "")]


def test_a_fenced_controller_reports_no_checkpoint(run: RunStore, saver: CheckpointCommitter, decided: Decided) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    run.claim_term("somebody else", "later")
    saver.commit(FIRST)
    assert decided == [(None, "fenced")]


def test_a_failed_part_gives_the_checkpoint_up_once(saver: CheckpointCommitter, decided: Decided) -> None:
    saver.begins(FIRST)
    saver.abandon(FIRST, "disk full")
    saver.abandon(FIRST, "disk full")
    assert decided == [(FIRST, "disk full")]
    assert saver.done(FIRST)
    assert not saver.take(part(1))


def test_a_step_given_up_in_one_generation_is_saved_in_the_next_from_its_parts_alone(
    run: RunStore, saver: CheckpointCommitter, decided: Decided
) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    saver.take(part(0))
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided == [(FIRST, "a worker was lost")]
    assert saver.begins(SECOND)
    assert not saver.take(part(1)), "a late part of the generation that is gone counts for nothing"
    assert not saver.take(part(0, generation=2))
    assert saver.take(part(1, generation=2))
    saver.commit(SECOND)
    assert decided[1:] == [(SECOND, "")]
    assert len(run.names("checkpoints")) == 1


def test_what_is_whole_but_not_committed_yet_is_not_abandoned(run: RunStore, saver: CheckpointCommitter, decided: Decided) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided == []
    saver.commit(FIRST)
    assert decided == [(FIRST, "")]


def test_a_part_that_comes_after_its_generation_was_given_up_begins_nothing(saver: CheckpointCommitter, decided: Decided) -> None:
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert saver.done(FIRST), "whoever has a part may forget it"
    assert not saver.begins(FIRST)
    assert saver.begins(SECOND)
    assert decided == []


def test_what_is_whole_is_not_abandoned_and_needs_no_second_save(run: RunStore, saver: CheckpointCommitter, decided: Decided) -> None:
    store_chunks(run)
    saver.begins(FIRST)
    assert take_all(saver, 1)
    saver.commit(FIRST)
    saver.abandon_unfinished(Generation(1), "a worker was lost")
    assert decided == [(FIRST, "")]
    assert saver.done(SECOND)
    assert not saver.begins(SECOND)
