"""What a new controller finds, and what it builds on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, Term, WorkerId
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.coordinator import Found
from launcher.runtime.records.inheritance import base_on_checkpoint, base_on_workers, inherit, since_answered
from launcher.runtime.transport.rendezvous import Rendezvous, RendezvousStore

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


def test_values_reach_those_who_wait_and_no_other_generation() -> None:
    rendezvous = Rendezvous()
    ask = {"kind": "get", "generation": 1, "key": "0", "value": ""}
    tell = {"kind": "set", "generation": 1, "key": "0", "value": "eA=="}
    assert rendezvous.heard(WorkerId("w1"), {**ask, "generation": 2}) == []
    assert rendezvous.heard(WorkerId("w1"), ask) == []
    answers = rendezvous.heard(WorkerId("w0"), tell)
    assert [(worker, answer["value"]) for worker, answer in answers] == [("w1", "eA==")]
    assert rendezvous.heard(WorkerId("w2"), ask)[0][0] == "w2"


def test_a_value_is_asked_for_once_and_repeated_to_a_new_controller() -> None:
    said: list[JsonObject] = []
    store = RendezvousStore(4, said.append)
    store.set("a", b"1")
    with pytest.raises(TimeoutError, match="generation 4"):
        store.get("b", timeout_s=0.0)
    store.repeat()
    assert [(message["kind"], message["key"]) for message in said] == [("set", "a"), ("get", "b"), ("set", "a"), ("get", "b")]
    store.answered({"generation": 3, "key": "b", "value": "eA=="})
    with pytest.raises(TimeoutError):
        store.get("b", timeout_s=0.0)
    store.answered({"generation": 4, "key": "b", "value": "eA=="})
    assert store.get("b", timeout_s=0.0) == b"x"
