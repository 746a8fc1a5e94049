"""What a worker says of its steps, and what it measures of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.types import Generation, JsonObject, Rank, Step, WorldSize
from launcher.runtime.worker.reporter import SMOOTHING, Reporter, user_traceback
from launcher.runtime.worker.step_history import StepHistory
from launcher.training.step import StepFlags
from launcher.training.trainer import StepRecord

pytestmark = pytest.mark.unit


class FakeDesk:
    def __init__(self) -> None:
        self.generation = 1
        self.records = StepHistory(2, global_batch_size=8, checkpoint_every_steps=None)
        self.said: list[tuple[JsonObject, bool]] = []
        self.said_by_one: list[JsonObject] = []
        self.steps: list[tuple[int, bool]] = []
        self.waited = 0.0
        self.switch = self.stop = False
        self.asked_for_a_controller = 0

    def say(self, message: JsonObject, *, keep: bool = False) -> None:
        self.said.append((message, keep))

    def say_record(self, message: JsonObject) -> None:
        self.said_by_one.append(message)

    def applied(self, step: int, *, first: bool) -> None:
        self.steps.append((step, first))

    def switch_wanted(self) -> bool:
        return self.switch

    def stop_wanted(self) -> bool:
        return self.stop

    def wait_for_controller(self) -> None:
        self.asked_for_a_controller += 1

    def waited_s(self) -> float:
        return self.waited


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


def record(step: int, seconds: float = 1.0) -> StepRecord:
    return StepRecord(step, 0.5, {}, seconds, None)


def test_each_step_is_told_and_a_row_is_said_when_it_is_complete(desk: FakeDesk) -> None:
    reporter = Reporter(desk, None)
    for step in (1, 2, 3):
        reporter.applied(record(step))
    desk.generation = 2
    reporter.applied(record(4))
    assert desk.steps == [(1, True), (2, False), (3, False), (4, True)]
    assert [(row["first"], row["row"]["step"]) for row in desk.said_by_one] == [(1, 2), (3, 4)]  # type: ignore[index, call-overload]
    assert all(row["row"]["time"] for row in desk.said_by_one)  # type: ignore[index, call-overload]


def test_own_computing_is_what_is_left_of_a_step_without_waiting(desk: FakeDesk) -> None:
    reporter = Reporter(desk, None)
    desk.waited = 5.0
    reporter.applied(record(1, 100.0))
    assert (reporter.busy_s, reporter.step_s) == (None, None), "a generation's first step is cold"
    desk.waited = 5.25
    reporter.applied(record(2, 1.0))
    assert (reporter.busy_s, reporter.step_s) == (0.75, 1.0), "what was waited for the state and in the first step is not this step's"
    desk.waited = 5.5
    reporter.applied(record(3, 2.0))
    assert reporter.busy_s == pytest.approx(0.75 + SMOOTHING * (1.75 - 0.75))
    assert reporter.step_s == pytest.approx(1.0 + SMOOTHING)
    desk.generation, desk.waited = 2, 0.0
    reporter.applied(record(4, 9.0))
    assert (reporter.busy_s, reporter.step_s) == (None, None), "what another group needed says nothing of this one"


def test_waiting_longer_than_the_step_is_no_negative_computing(desk: FakeDesk) -> None:
    reporter = Reporter(desk, None)
    reporter.applied(record(1))
    desk.waited = 3.0
    reporter.applied(record(2, 1.0))
    assert reporter.busy_s == 0.0


def test_parts_and_failures_of_a_checkpoint_are_kept_for_the_next_controller(desk: FakeDesk) -> None:
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
    reporter = Reporter(desk, None)
    reporter.saved(part, 1.5)
    reporter.save_failed(6, 1, OSError("disk full"))
    (saved, kept), (failed, also_kept) = desk.said
    assert saved["generation"] == 1
    assert (saved["kind"], saved["step"], CheckpointPart.from_json(saved["part"])) == ("saved", 5, part)
    assert failed == {"kind": "save_failed", "step": 6, "generation": 1, "detail": "disk full"}
    assert kept
    assert also_kept


def test_wishes_are_the_desks_and_a_checkpoints_boundary_wants_a_controller(desk: FakeDesk) -> None:
    reporter = Reporter(desk, 2)
    for step in (1, 2, 3):
        reporter.applied(record(step))
        reporter.flags()
    assert desk.asked_for_a_controller == 1
    desk.switch = True
    assert reporter.flags() == StepFlags(switch=True)
    desk.switch, desk.stop = False, True
    assert reporter.flags() == StepFlags(stop=True)


def test_without_checkpoints_nobody_waits_for_a_controller(desk: FakeDesk) -> None:
    Reporter(desk, None).flags()
    assert desk.asked_for_a_controller == 0


def test_an_evaluation_is_said_by_one_and_kept_by_all(desk: FakeDesk) -> None:
    Reporter(desk, None).evaluated(4, {"accuracy": 0.5})
    assert desk.said_by_one == desk.records.evaluations == [{"kind": "evaluated", "step": 4, "metrics": {"accuracy": 0.5}}]


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
