"""The ledger names each step once, and the store has it before anybody is told that it has."""

from __future__ import annotations

import pytest

from launcher.core.clock import ManualClock
from launcher.core.types import Generation, Step, Term
from launcher.record.run_store import RunStore
from launcher.runtime.records.event_log import EventLog
from tests.support.recording import ImmediateWriter, metrics_row

pytestmark = pytest.mark.unit
T1 = Term(1)


@pytest.fixture
def log(run: RunStore) -> EventLog:
    return EventLog(run, T1, ImmediateWriter(), ManualClock(), batch=64)  # type: ignore[arg-type]


def steps_of_metrics(run: RunStore) -> list[object]:
    return [each["step"] for _, _, name in run.segments("metrics") for each in run.segment("metrics", name)]


def test_the_ledger_joins_ranges_of_one_generation_and_splits_at_the_next(run: RunStore, log: EventLog) -> None:
    durable: list[int] = []
    for first, last, generation in ((1, 10, 1), (11, 20, 1), (21, 25, 2)):
        log.steps(metrics_row(last), first=Step(first), generation=Generation(generation))
    log.flush(ledger=False, durable=durable.append)
    assert durable == []
    log.flush(ledger=True, durable=durable.append)
    assert durable == [25]
    events = [event for _, _, name in run.segments("events") for event in run.segment("events", name)]
    assert [(event["first"], event["last"], event["generation"], event["samples"]) for event in events] == [
        (1, 20, 1, [0, 1280]),
        (21, 25, 2, [1280, 1600]),
    ]
    assert steps_of_metrics(run) == [10, 20, 25]


def test_nobody_is_told_that_steps_are_durable_once_a_higher_term_was_claimed(run: RunStore, log: EventLog) -> None:
    run.claim_just(T1, "me", "now")
    run.claim_term("somebody else", "later")
    durable: list[int] = []
    log.steps(metrics_row(10), first=Step(1), generation=Generation(1))
    log.flush(ledger=True, durable=durable.append)
    assert durable == []
    assert steps_of_metrics(run) == [10]
