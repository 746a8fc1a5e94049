from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from launcher import jobs
from launcher.core.types import JsonObject, Step, Term
from launcher.jobs.records import event_reader, event_within, row_within
from launcher.jobs.refs import RunRef
from launcher.record.events import LedgerEntry, RecordedEvent, decode
from launcher.record.lineage import LineageEntry
from launcher.record.rows import EvaluationRow
from launcher.record.status import JobState
from tests.support.fakes import FakeController, ScriptedClock

pytestmark = pytest.mark.unit


def _steps(first: int, last: int) -> JsonObject:
    return {"kind": "steps", "step": last, "first": first, "last": last, "samples": [(first - 1) * 8, last * 8]}


def _line(line: str, rank: int = 0) -> JsonObject:
    return {"worker": f"w{rank}", "rank": rank, "stream": "stdout", "line": line}


@pytest.fixture
def rolled_back(submit: Callable[..., RunRef], clock: ScriptedClock) -> RunRef:
    """Term 1 reached step 30, term 2 went on from the checkpoint at 20; term 3 never had a base."""
    ref = submit()
    first = FakeController(ref.open(), clock).begin_term()
    first.segment("events", {"kind": "started", "step": 0}, _steps(1, 15))
    first.segment("events", _steps(16, 30), {"kind": "checkpoint_committed", "step": 30}, {"kind": "worker_lost", "step": 30})
    first.segment("metrics", {"step": 10}, {"step": 20}, {"step": 30})
    first.segment("logs", _line("a"), _line("b", 1))
    first.end(JobState.FAILED)
    clock.advance(60)
    second = FakeController(ref.open(), clock).begin_term(from_term=first.term, checkpoint_step=20)
    second.segment("events", {"kind": "started", "step": 20}, _steps(21, 25))
    second.segment("metrics", {"step": 25})
    second.segment("logs", _line("c"), _line("d", 1))
    second.end(JobState.SUCCEEDED)
    FakeController(ref.open(), clock).segment("events", {"kind": "started", "step": 0})
    return ref


def test_events_are_those_of_the_lineage(rolled_back: RunRef) -> None:
    told = [(event.kind, event.step) for event in jobs.events(rolled_back)]
    assert told == [("started", 0), ("steps", 15), ("steps", 20), ("worker_lost", 30), ("started", 20), ("steps", 25)]
    samples = [told.event.samples for told in jobs.events(rolled_back) if isinstance(told.event, LedgerEntry)]
    assert samples == [(0, 120), (120, 160), (160, 200)]


def test_metrics_are_those_of_the_lineage(rolled_back: RunRef) -> None:
    assert [row.step for row in jobs.metrics(rolled_back)] == [10, 20, 25]


def test_a_range_of_steps_is_cut_where_the_lineage_is() -> None:
    entry = LineageEntry(Term(1), Step(0), Step(20))

    def told(record: JsonObject) -> RecordedEvent:
        return decode({"time": "", "term": 1, "generation": 1, "step": 21, **record}, where="")

    assert event_within(entry, told(_steps(21, 30))) is None
    assert event_within(entry, told(_steps(11, 20))) == told(_steps(11, 20))
    assert event_within(entry, told(_steps(16, 30))) == told(_steps(16, 20))
    assert event_within(entry, told({"kind": "note"})) == told({"kind": "note"})
    assert row_within(entry, EvaluationRow(step=Step(21), time="", values={"eval_loss": 1.0})) is None


def test_logs_are_all_that_was_printed(rolled_back: RunRef, clock: ScriptedClock) -> None:
    def lines(**chosen: object) -> list[object]:
        return [record.line for record in jobs.logs(rolled_back, **chosen)]  # type: ignore[arg-type]

    assert lines() == ["a", "b", "c", "d"]
    assert lines(rank=1) == ["b", "d"]
    assert lines(since=clock.now() - timedelta(seconds=1)) == ["c", "d"]
    assert lines(tail=3) == ["b", "c", "d"]
    assert lines(tail=1, rank=0) == ["c"]
    assert lines(tail=0) == []
    assert lines(tail=99) == ["a", "b", "c", "d"]


def test_following_ends_with_the_run_and_misses_nothing(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock, state=JobState.RUNNING).begin_term()
    controller.segment("logs", _line("before"))
    clock.at(1.0, lambda: controller.segment("logs", _line("during")))

    def end() -> None:
        controller.segment("logs", _line("last"))
        controller.end(JobState.SUCCEEDED)

    clock.at(5.0, end)
    assert [record.line for record in jobs.logs(ref, follow=True, clock=clock)] == ["before", "during", "last"]
    assert [record.line for record in jobs.logs(ref, follow=True, tail=1, clock=clock)] == ["last"]


def test_a_reader_tells_each_record_once_and_waits_for_the_base(submit: Callable[..., RunRef], clock: ScriptedClock) -> None:
    ref = submit()
    controller = FakeController(ref.open(), clock)
    reader = event_reader(ref.open())
    controller.segment("events", {"kind": "started", "step": 0})
    assert list(reader.new()) == []
    controller.begin_term()
    assert [event.kind for event in reader.new()] == ["started"]
    assert list(reader.new()) == []
