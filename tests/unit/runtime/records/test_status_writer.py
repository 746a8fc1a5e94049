"""The status document as a controller writes it, and what it takes over from the terms before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import ManualClock
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.desired import WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.members import LastChange, Member, ResizeFacts
from launcher.record.run_store import STATUS_INTERVAL_S, RunStore
from launcher.record.status import JobState, RunStatus
from launcher.record.variables import SecretReference, Variables
from launcher.runtime.protocol.events import End
from launcher.runtime.protocol.messages import Job
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.progress import Progress
from launcher.runtime.records.status_writer import StatusWriter
from tests.support.recording import ImmediateWriter

pytestmark = pytest.mark.unit
A, B = WorkerId("w0"), WorkerId("w1")
BOUNDS = WorkerBounds(min=1, max=4, target=2)
CHANGE = ResizeFacts(cause="grow", from_size=1, to_size=2, joined=(B,))
LAST_CHANGE = LastChange(
    cause="grow", from_size=1, to_size=2, joined=(B,), generation=Generation(2), step=Step(7), at="2026-01-01T00:00:00.000Z"
)
MEMBERS = (Member(id=A, rank=0, node="here", pid=7),)
JOB = Job(device="cpu", total_steps=100, data_size=640)


class Board:
    """A status writer, the store that it writes to, and what it showed."""

    def __init__(self, run: RunStore, spec: JobSpec) -> None:
        self.run, self.spec, self.clock = run, spec, ManualClock()
        self.shown: list[RunStatus] = []
        self.status = self.of_next_term()

    def of_next_term(self) -> StatusWriter:
        return StatusWriter(self.run, self.clock, self.spec, ImmediateWriter(), inherit(self.run), self.shown.append)  # type: ignore[arg-type]

    def written(self, term: int = 1, *, step: int = 0, end: End | None = None) -> RunStatus:
        progress = Progress.after(inherit(self.run), Step(0), self.spec)
        progress.committed(Step(step))
        self.status.write(Term(term), progress=progress, bounds=BOUNDS, generation=Generation(3), members=MEMBERS, end=end)
        status = self.run.status(Term(term))
        assert status is not None
        assert self.shown[-1] == status
        return status

    def due(self) -> bool:
        return self.status.due(self.clock.monotonic())


@pytest.fixture
def board(run: RunStore, spec: JobSpec) -> Board:
    return Board(run, spec)


def test_a_status_is_read_as_it_was_written(board: Board) -> None:
    status = board.status
    status.know_job(JOB)
    status.steps_lost, status.changes = 3, 2
    status.waiting_for, status.draining, status.stragglers = "1 GPU", (A,), (B,)
    status.dashboard = "http://here:8265"
    status.resized(CHANGE, Generation(2), Step(7))
    status.checkpoint = CheckpointInfo(Step(10), Term(1))
    read = board.written(step=15)
    assert (read.state, read.step, read.total_steps, read.epoch) == (JobState.STARTING, 15, 100, 1.5)
    assert (read.generation, read.world_size, read.members, read.workers) == (3, 1, MEMBERS, BOUNDS)
    assert (read.device, read.dashboard) == ("cpu", "http://here:8265")
    assert (read.steps_lost, read.samples_repeated) == (3, 192)
    assert (read.waiting_for, read.draining, read.stragglers) == ("1 GPU", (A,), (B,))
    assert (read.changes, read.last_change) == (2, LAST_CHANGE)
    assert read.checkpoint is not None
    assert read.checkpoint.step == 10
    assert read.checkpoint.uri.startswith(board.run.uri)


def test_each_write_counts_on_and_the_next_is_due_after_the_interval(board: Board) -> None:
    assert [board.written().sequence for _ in range(3)] == [1, 2, 3]
    board.clock.advance(STATUS_INTERVAL_S - 0.1)
    assert not board.due()
    board.clock.advance(0.1)
    assert board.due()


def test_what_is_new_is_due_at_once_and_what_is_known_is_not(board: Board) -> None:
    board.written()
    board.status.set_state(JobState.STARTING, "starting Ray")
    assert not board.due(), "that is what was written"
    board.status.set_state(JobState.RUNNING, "")
    assert board.due()
    assert board.written().state is JobState.RUNNING
    assert not board.due()
    board.status.soon()
    assert board.due()
    board.written()
    board.status.resized(CHANGE, Generation(2), Step(7))
    assert board.due()


def test_the_exit_code_is_that_of_the_end_and_there_is_none_before(board: Board) -> None:
    end = End(JobState.FAILED, "no capacity", ExitCode.INFRASTRUCTURE)
    board.status.waiting_for, board.status.draining, board.status.stragglers = "1 GPU", (A,), (B,)
    board.status.set_state(JobState.STOPPING, "")
    status = board.written(end=end)
    assert (status.exit_code, status.ended_at) == (None, None)
    board.status.end(end)
    status = board.written(end=end)
    assert (status.state, status.exit_code, status.reason) == (JobState.FAILED, ExitCode.INFRASTRUCTURE, "no capacity")
    assert status.ended_at == status.updated_at
    assert (status.waiting_for, status.draining, status.stragglers) == ("", (), ()), "nobody waits for anything any more"


def test_a_new_term_goes_on_from_what_was_shown(board: Board) -> None:
    board.run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    board.status.know_job(JOB)
    board.status.changes, board.status.steps_lost = 2, 3
    board.status.resized(CHANGE, Generation(2), Step(7))
    first = board.written()
    board.status = board.of_next_term()
    status = board.written(term=2)
    assert (status.term, status.sequence) == (2, 1)
    assert (status.total_steps, status.changes, status.last_change, status.steps_lost) == (100, 2, LAST_CHANGE, 3)
    assert status.started_at == first.started_at


def test_the_variables_of_the_job_are_shown(run: RunStore, spec: JobSpec) -> None:
    variables: Variables = {"DATA_ROOT": "/a", "HF_TOKEN": SecretReference(secret="team/token")}
    of_job = replace(spec, config=replace(spec.config, environment={**variables}))
    assert Board(run, of_job).written().environment == variables
