"""What a new controller finds, and what it builds on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.store import open_store
from launcher.core.types import Generation, RunId, Step, Term, WorkerId
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.coordinator import Found
from launcher.runtime.records.inheritance import base_on_checkpoint, base_on_workers, inherit, since_answered

pytestmark = pytest.mark.unit
A = WorkerId("w0")


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore(open_store(str(tmp_path), create=True), RunId("r"))


def test_a_new_run_begins_at_nothing(run: RunStore) -> None:
    left = inherit(run)
    assert (left.term, left.reached, left.recorded, left.checkpoints) == (None, 0, 0, ())
    assert base_on_checkpoint(left, None) == TermBase(from_term=None, checkpoint_step=None, adopted_step=None)


def test_the_ledger_of_the_lineage_is_inherited_and_a_rolled_back_term_is_cut(run: RunStore) -> None:
    run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    run.put_segment("metrics", Term(1), 1, [{"step": 10, "seconds": 1.0}, {"step": 20, "seconds": 1.0}])
    assert inherit(run).recorded == 0, "the ledger does not have them yet"
    run.put_segment("events", Term(1), 1, [{"kind": "steps", "first": 1, "last": 20, "generation": 3}])
    assert inherit(run).generation == 3
    assert (inherit(run).recorded, inherit(run).train_seconds) == (20, 2.0)
    assert base_on_workers(inherit(run), [A]) == TermBase(from_term=Term(1), checkpoint_step=None, adopted_step=Step(20), workers=(A,))
    run.create_base(Term(2), TermBase(from_term=Term(1), checkpoint_step=Step(10), adopted_step=None))
    left = inherit(run)
    assert (left.term, left.recorded, left.train_seconds) == (2, 10, 1.0)


def test_a_state_that_arrived_after_the_answer_counts_but_not_its_place() -> None:
    answer = Found(A, True, Generation(3), 0, 2, None, True, None, None, False, Generation(3), Term(1))
    assert since_answered(answer, Generation(3), Step(7)) == replace(answer, applied=Step(7))
    assert since_answered(answer, Generation(4), Step(7)) == replace(answer, generation=Generation(4), applied=Step(7), inside=False)


def test_a_term_without_a_base_is_skipped(run: RunStore) -> None:
    run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    run.claim_term("somebody", "now")
    run.claim_term("somebody", "now")
    assert inherit(run).term == 1
    assert run.highest_term() == 3
