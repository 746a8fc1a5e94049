"""What a new controller finds in the store."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, JsonObject, Step, Term
from launcher.record.events import LedgerEntry, RecordedEvent, encode
from launcher.record.lineage import TermBase
from launcher.record.rows import encode_row
from launcher.record.run_store import RunStore
from launcher.runtime.records.inheritance import inherit
from tests.support.recording import SUBMITTED_AT, metrics_row

pytestmark = pytest.mark.unit


def ledger_entry(first: int, last: int, generation: int) -> JsonObject:
    return encode(
        RecordedEvent(
            time=SUBMITTED_AT,
            term=Term(1),
            generation=Generation(generation),
            step=Step(last),
            event=LedgerEntry(first=Step(first), last=Step(last), samples=((first - 1) * 64, last * 64)),
        )
    )


def test_a_new_run_begins_at_nothing(run: RunStore) -> None:
    left = inherit(run)
    assert (left.term, left.reached, left.recorded, left.checkpoints) == (None, 0, 0, ())


def test_the_ledger_of_the_lineage_is_inherited_and_a_rolled_back_term_is_cut(run: RunStore) -> None:
    run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    run.put_segment("metrics", Term(1), 1, [encode_row(metrics_row(10)), encode_row(metrics_row(20))])
    assert inherit(run).recorded == 0, "the ledger does not have them yet"
    run.put_segment("events", Term(1), 1, [ledger_entry(1, 20, generation=3)])
    assert inherit(run).generation == 3
    assert (inherit(run).recorded, inherit(run).train_seconds) == (20, 2.0)
    run.create_base(Term(2), TermBase(from_term=Term(1), checkpoint_step=Step(10), adopted_step=None))
    left = inherit(run)
    assert (left.term, left.recorded, left.train_seconds) == (2, 10, 1.0)


def test_a_term_without_a_base_is_skipped(run: RunStore) -> None:
    run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    run.claim_term("somebody", "now")
    run.claim_term("somebody", "now")
    assert inherit(run).term == 1
    assert run.highest_term() == 3
