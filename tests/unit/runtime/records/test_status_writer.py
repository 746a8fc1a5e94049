"""The status document as a controller writes it, and what it takes over from the terms before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.config.load import compose
from launcher.core.clock import ManualClock
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, Term, WorkerId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.members import LastChange, Member
from launcher.record.run_store import STATUS_INTERVAL_S, RunStore
from launcher.record.status import JobState, RunStatus
from launcher.runtime.protocol.coordinator import End
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.status_writer import StatusWriter

pytestmark = pytest.mark.unit
BOUNDS = WorkerBounds(min=1, max=4, target=2)
CHANGE = LastChange(cause="grow", from_size=1, to_size=2, generation=Generation(2), step=Step(7), at="now")
MEMBERS: list[JsonObject] = [{"id": "w0", "rank": 0, "node": "here", "pid": 7}]


class Immediate:
    def submit(self, write: Callable[[], None]) -> None:
        write()


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    config = compose(["trainer.global_batch_size=64"], folder=Path(__file__).parents[4])
    return JobSpec(
        run_id=RunId("r"), name="r", config=config, code=CodeRef(digest=""), versions={}, submitted_at="2026-01-01T00:00:00.000Z"
    )


@pytest.fixture
def board(tmp_path: Path, spec: JobSpec) -> StatusWriter:
    return StatusWriter(RunStore(open_store(str(tmp_path), create=True), RunId("r")), ManualClock(), spec)


def written(board: StatusWriter, term: int = 1, *, step: int = 0, end: End | None = None) -> RunStatus:
    left = inherit(board.run)
    progress = Progress.after(left, Step(0), board.spec)
    progress.committed(step)
    writer = Immediate()
    board.write(writer, Term(term), left=left, progress=progress, bounds=BOUNDS, generation=3, members=MEMBERS, end=end)  # type: ignore[arg-type]
    status = board.run.status(Term(term))
    assert status is not None
    return status


def test_a_status_is_read_as_it_was_written(board: StatusWriter) -> None:
    board.total_steps, board.data_size, board.device, board.steps_lost = 100, 640, "cpu", 3
    board.waiting_for, board.draining, board.stragglers = "1 GPU", ("w0",), ("w1",)
    board.changes, board.last_change = 2, CHANGE
    board.checkpoint = CheckpointInfo(Step(10), Term(1))
    status = written(board, step=15)
    assert (status.state, status.step, status.total_steps, status.epoch) == (JobState.STARTING, 15, 100, 1.5)
    assert (status.generation, status.world_size, status.members, status.workers) == (
        3,
        1,
        (Member(id=WorkerId("w0"), rank=0, node="here", pid=7),),
        BOUNDS,
    )
    assert (status.steps_lost, status.samples_repeated) == (3, 192)
    assert (status.waiting_for, status.draining, status.stragglers) == ("1 GPU", ("w0",), ("w1",))
    assert (status.changes, status.last_change) == (2, CHANGE)
    assert status.checkpoint is not None
    assert status.checkpoint.step == 10
    assert status.checkpoint.uri.startswith(board.run.uri)


def test_each_write_counts_on_and_says_when_the_next_is_due(board: StatusWriter) -> None:
    assert [written(board).sequence for _ in range(3)] == [1, 2, 3]
    assert board.due == board.clock.monotonic() + STATUS_INTERVAL_S


def test_what_is_new_is_due_at_once_and_what_is_known_is_not(board: StatusWriter) -> None:
    written(board)
    due = board.due
    board.say(board.state, board.reason)
    assert board.due == due
    board.say(JobState.RUNNING, "")
    assert board.due == 0.0
    assert written(board).state is JobState.RUNNING


def test_the_exit_code_is_that_of_the_end_and_there_is_none_before(board: StatusWriter) -> None:
    end = End(JobState.FAILED, "no capacity", ExitCode.INFRASTRUCTURE)
    board.say(JobState.STOPPING, "")
    status = written(board, end=end)
    assert (status.exit_code, status.ended_at) == (None, None)
    board.say(JobState.FAILED, "no capacity")
    status = written(board, end=end)
    assert (status.exit_code, status.reason) == (ExitCode.INFRASTRUCTURE, "no capacity")
    assert status.ended_at == status.updated_at


def test_a_new_term_goes_on_from_what_was_shown(board: StatusWriter) -> None:
    board.run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    board.total_steps, board.changes, board.last_change, board.steps_lost = 100, 2, CHANGE, 3
    first = written(board)
    heir = StatusWriter(board.run, board.clock, board.spec)
    heir.inherit(inherit(board.run))
    status = written(heir, term=2)
    assert (status.term, status.sequence) == (2, 1)
    assert (status.total_steps, status.changes, status.last_change, status.steps_lost) == (100, 2, CHANGE, 3)
    assert status.started_at == first.started_at
