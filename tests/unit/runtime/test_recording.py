"""Rows wait until they are committed; the ledger names each step once; a manifest follows its events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.config.load import compose
from launcher.core.clock import ManualClock
from launcher.core.errors import LauncherError
from launcher.core.run_store import RunStore
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, Term
from launcher.runtime.office import inherit
from launcher.runtime.progress import Progress
from launcher.runtime.recorder import Recorder
from launcher.runtime.saver import Saver
from launcher.spec.job import CodeRef, JobSpec

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
    config = compose(["trainer.global_batch_size=64"], folder=Path(__file__).parents[3])
    return JobSpec(
        run_id=RunId("r"), name="r", config=config, code=CodeRef(digest=""), versions={}, submitted_at="2026-01-01T00:00:00.000Z"
    )


def row(step: int, seconds: float = 1.0, loss: float = 0.5) -> JsonObject:
    return {"step": step, "time": "", "seconds": seconds, "loss": loss, "samples_per_s": 1.0}


def test_rows_wait_for_the_slowest_member_and_are_taken_once(run: RunStore, spec: JobSpec) -> None:
    progress = Progress.after(inherit(run), Step(0), spec)
    progress.take(row(10))
    progress.take(row(20, loss=0.25))
    progress.take(row(10))
    assert progress.committed(9) == []
    assert [first for first, _ in progress.committed(15)] == [1]
    assert (progress.step, progress.train_loss) == (15, 0.5)
    assert [(first, each["step"]) for first, each in progress.committed(20)] == [(11, 20)]
    assert progress.train_loss == 0.25
    assert progress.samples_per_s == 640.0
    assert progress.committed(20) == []
    assert progress.step == 20


def test_an_evaluation_is_taken_once(run: RunStore, spec: JobSpec) -> None:
    progress = Progress.after(inherit(run), Step(0), spec)
    assert progress.evaluated(20, {"accuracy": 0.5})
    assert not progress.evaluated(20, {"accuracy": 0.5})
    assert progress.metrics == {"accuracy": 0.5}


def test_the_ledger_joins_ranges_of_one_generation_and_splits_at_the_next(run: RunStore) -> None:
    recorder = Recorder(run, T1, Immediate(), ManualClock())  # type: ignore[arg-type]
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


def part(rank: int, *, step: int = 5, world_size: int = 2) -> CheckpointPart:
    return CheckpointPart(
        step=Step(step),
        generation=Generation(1),
        rank=rank,  # type: ignore[arg-type]
        world_size=world_size,  # type: ignore[arg-type]
        chunk_count=2,
        chunks=(ChunkRef(rank, f"{rank:064d}", 1),),
        tensors=() if rank == 0 else None,
        state={} if rank == 0 else None,
    )


@pytest.fixture
def decided() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def saver(run: RunStore, spec: JobSpec, decided: list[tuple[int, str]]) -> Saver:
    run.claim_term("me", "now")
    return Saver(
        run,
        T1,
        Immediate(),  # type: ignore[arg-type]
        spec,
        decided=lambda step, failure: decided.append((step, failure)),
        fenced=lambda: decided.append((-1, "fenced")),
        clock=ManualClock(),
    )


def store_chunks(run: RunStore) -> None:
    for rank in range(2):
        run.store.put(run.key(f"blobs/{rank:064d}"), b"x")


def test_a_checkpoint_is_committed_when_all_parts_are_there(run: RunStore, saver: Saver, decided: list[tuple[int, str]]) -> None:
    store_chunks(run)
    assert saver.begins(5)
    assert not saver.begins(5)
    assert not saver.take(part(0))
    assert saver.take(part(1))
    saver.commit(5)
    assert decided == [(5, "")]
    assert len(run.names("checkpoints")) == 1
    assert not saver.begins(5), "a part that is said again begins nothing"


def test_a_checkpoint_whose_chunk_is_gone_is_not_committed(run: RunStore, saver: Saver, decided: list[tuple[int, str]]) -> None:
    saver.begins(5)
    saver.take(part(0))
    saver.take(part(1))
    saver.commit(5)
    assert decided[0][0] == 5
    assert "gone" in decided[0][1]
    assert run.names("checkpoints") == []


def test_a_fenced_controller_reports_no_checkpoint(run: RunStore, saver: Saver, decided: list[tuple[int, str]]) -> None:
    store_chunks(run)
    saver.begins(5)
    saver.take(part(0))
    saver.take(part(1))
    run.claim_term("somebody else", "later")
    saver.commit(5)
    assert decided == [(-1, "fenced")]


def test_a_failed_part_gives_the_checkpoint_up_once(saver: Saver, decided: list[tuple[int, str]]) -> None:
    saver.begins(5)
    saver.abandon(5, "disk full")
    saver.abandon(5, "disk full")
    assert decided == [(5, "disk full")]
    assert not saver.take(part(1))
