"""What a new term builds on, and whom it takes over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.core.types import Generation, RunId, Step, Term, WorkerId
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.runtime.controller.takeover import base_on_checkpoint, base_on_workers, since_answered
from launcher.runtime.protocol.events import WorkerState
from launcher.runtime.records.inheritance import inherit
from tests.support.stores import MemoryStore

pytestmark = pytest.mark.unit
A = WorkerId("w0")


def test_a_new_run_begins_at_nothing() -> None:
    left = inherit(RunStore(MemoryStore(), RunId("r")))
    assert base_on_checkpoint(left, None) == TermBase(from_term=None, checkpoint_step=None, adopted_step=None)


def test_workers_that_are_taken_over_go_on_where_the_ledger_ends() -> None:
    left = replace(inherit(RunStore(MemoryStore(), RunId("r"))), term=Term(1), recorded=Step(20))
    assert base_on_workers(left, [A]) == TermBase(from_term=Term(1), checkpoint_step=None, adopted_step=Step(20), workers=(A,))


def test_a_state_that_arrived_after_the_answer_counts_but_not_its_place() -> None:
    answer = WorkerState(A, True, Generation(3), 0, 2, None, True, None, None, False, Generation(3), Term(1))
    assert since_answered(answer, Generation(3), Step(7)) == replace(answer, applied=Step(7))
    assert since_answered(answer, Generation(4), Step(7)) == replace(answer, generation=Generation(4), applied=Step(7), inside=False)
