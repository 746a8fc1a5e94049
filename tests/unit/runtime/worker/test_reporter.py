"""What a worker says of its steps, and what it measures of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.types import Generation, Rank, Step, WorldSize
from launcher.runtime.protocol.messages import Beat, Evaluated, FirstStep, Row, Saved, SaveFailed, ToController
from launcher.runtime.worker.activity import SMOOTHING, Activity
from launcher.runtime.worker.outbox import Outbox
from launcher.runtime.worker.reporter import Reporter, missing_variable, user_traceback
from launcher.runtime.worker.step_history import StepHistory
from launcher.training.step import StepFlags
from launcher.training.trainer import StepRecord

pytestmark = pytest.mark.unit


BEAT = Beat(Generation(1), Step(0), None, False, Step(0), True, "training", 7, False, None, None)


class FakeWorker:
    """What the reporter needs of membership, connection and groups."""

    def __init__(self) -> None:
        self.generation = Generation(1)
        self.history = StepHistory(2, global_batch_size=8, checkpoint_every_steps=None)
        self.activity = Activity()
        self.said: list[ToController] = []
        self.said_by_one: list[Row | Evaluated] = []
        self.steps: list[tuple[int, bool]] = []
        """Steps that were applied, and whether others were told that it is the first of its generation."""
        self.closed_retired = 0
        self.waited_s = 0.0
        self.switch_wanted = self.stop_wanted = False
        self.waited_for_a_controller = 0

    def reporter(self, checkpoint_every_steps: int | None = None) -> Reporter:
        fake: Any = self
        return Reporter(fake, fake, fake, self.history, self.activity, lambda: BEAT, checkpoint_every_steps=checkpoint_every_steps)

    def say(self, message: ToController) -> None:
        self.said.append(message)
        if isinstance(message, FirstStep):
            self.steps[-1] = (self.steps[-1][0], True)

    def say_record(self, record: Row | Evaluated) -> None:
        self.said_by_one.append(record)

    def applies(self, step: int) -> None:
        self.steps.append((step, False))

    def close_retired(self) -> None:
        self.closed_retired += 1

    def wait(self) -> None:
        self.waited_for_a_controller += 1


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


def record(step: int, seconds: float = 1.0) -> StepRecord:
    return StepRecord(step, 0.5, {}, seconds, None)


def test_each_step_is_told_and_a_row_is_said_when_it_is_complete(worker: FakeWorker) -> None:
    reporter = worker.reporter()
    for step in (1, 2, 3):
        reporter.applied(record(step))
    worker.generation = Generation(2)
    reporter.applied(record(4))
    assert worker.steps == [(1, True), (2, False), (3, False), (4, True)]
    rows = [row for row in worker.said_by_one if isinstance(row, Row)]
    assert [(row.first, row.row.step) for row in rows] == [(1, 2), (3, 4)]
    assert all(row.row.time for row in rows)


def test_the_first_step_of_a_generation_is_said_with_a_heartbeat_and_ends_the_groups_before_it(worker: FakeWorker) -> None:
    reporter = worker.reporter()
    for step, generation in ((1, 1), (2, 1), (3, 2)):
        worker.generation = Generation(generation)
        reporter.applied(record(step))
    assert [type(message) for message in worker.said] == [FirstStep, FirstStep]
    assert all(isinstance(message, FirstStep) and message.beat == BEAT and message.time for message in worker.said)
    assert worker.closed_retired == 2


def test_own_computing_is_what_is_left_of_a_step_without_waiting(worker: FakeWorker) -> None:
    reporter, activity = worker.reporter(), worker.activity
    worker.waited_s = 5.0
    reporter.applied(record(1, 100.0))
    assert (activity.busy_s, activity.step_s) == (None, None), "a generation's first step is cold"
    worker.waited_s = 5.25
    reporter.applied(record(2, 1.0))
    assert (activity.busy_s, activity.step_s) == (0.75, 1.0), "what was waited for the state and in the first step is not this step's"
    worker.waited_s = 5.5
    reporter.applied(record(3, 2.0))
    assert activity.busy_s == pytest.approx(0.75 + SMOOTHING * (1.75 - 0.75))
    assert activity.step_s == pytest.approx(1.0 + SMOOTHING)
    worker.generation, worker.waited_s = Generation(2), 0.0
    reporter.applied(record(4, 9.0))
    assert (activity.busy_s, activity.step_s) == (None, None), "what another group needed says nothing of this one"


def test_waiting_longer_than_the_step_is_no_negative_computing(worker: FakeWorker) -> None:
    reporter = worker.reporter()
    reporter.applied(record(1))
    worker.waited_s = 3.0
    reporter.applied(record(2, 1.0))
    assert worker.activity.busy_s == 0.0


def test_parts_and_failures_of_a_checkpoint_are_kept_for_the_next_controller(worker: FakeWorker) -> None:
    part = CheckpointPart(
        step=Step(5),
        generation=Generation(1),
        rank=Rank(0),
        world_size=WorldSize(1),
        chunk_count=1,
        chunks=(ChunkRef(0, "0" * 64, 1),),
        tensors=(),
        state={},
    )
    reporter = worker.reporter()
    reporter.saved(part, 1.5004)
    reporter.save_failed(6, 1, OSError("disk full"))
    saved, failed = worker.said
    assert isinstance(saved, Saved)
    assert (saved.part, saved.seconds) == (part, 1.5)
    assert failed == SaveFailed(Step(6), Generation(1), "disk full")
    outbox = Outbox()
    for message in worker.said:
        outbox.said(message, 0.0)
    assert outbox.messages(0.0) == [saved, failed]


def test_flags_are_what_was_ordered_and_a_checkpoints_boundary_needs_a_controller(worker: FakeWorker) -> None:
    reporter = worker.reporter(2)
    for step in (1, 2, 3):
        reporter.applied(record(step))
        reporter.flags()
    assert worker.waited_for_a_controller == 1
    worker.switch_wanted = True
    assert reporter.flags() == StepFlags(switch=True)
    worker.switch_wanted, worker.stop_wanted = False, True
    assert reporter.flags() == StepFlags(stop=True)


def test_without_checkpoints_nobody_waits_for_a_controller(worker: FakeWorker) -> None:
    worker.reporter().flags()
    assert worker.waited_for_a_controller == 0


def test_an_evaluation_is_said_by_one_and_kept_by_all(worker: FakeWorker) -> None:
    worker.reporter().evaluated(4, {"accuracy": 0.5})
    assert [*worker.said_by_one] == [*worker.history.evaluations] == [Evaluated(Step(4), {"accuracy": 0.5})]


def test_what_the_trainer_does_is_what_the_heartbeat_says(worker: FakeWorker) -> None:
    worker.reporter().doing("saving")
    assert worker.activity.phase == "saving"


def test_a_traceback_begins_where_the_users_code_is_entered(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def fails():\n    raise ZeroDivisionError('mine')\n")
    scope: dict[str, object] = {}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), scope)
    with pytest.raises(ZeroDivisionError) as caught:
        scope["fails"]()  # type: ignore[operator]
    text = user_traceback(caught.value, tmp_path)
    assert 'File "mine.py", line 2, in fails' in text
    assert text.endswith("ZeroDivisionError: mine")
    assert "test_reporter" not in text


def test_a_variable_that_the_job_has_not_is_named_with_the_way_to_give_it() -> None:
    found = []
    for read in (lambda: os.environ["DATA_ROOT_OF_NOBODY"], lambda: {}["DATA_ROOT_OF_NOBODY"], lambda: 1 / 0):
        try:
            read()
        except (KeyError, ZeroDivisionError) as error:
            found.append(missing_variable(error))
    assert "environment.DATA_ROOT_OF_NOBODY=VALUE" in found[0]
    assert found[1:] == ["", ""]
