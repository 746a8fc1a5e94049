from __future__ import annotations

import pytest

from launcher.core.errors import StoreDamaged, StoreUnavailable
from launcher.core.types import RunId, Step, Term
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore, padded
from tests.support.stores import ForgetfulStore, MemoryStore

pytestmark = pytest.mark.unit

BASE = TermBase(from_term=None, checkpoint_step=None, adopted_step=None)


def desired(revision: int, target: int = 2, resumes: int | None = None) -> Desired:
    return Desired(
        revision=revision,
        state="running",
        spec=1,
        workers=WorkerBounds(min=1, max=4, target=target),
        by="ann@host",
        at="2026-01-01T00:00:00.000Z",
        resumes=None if resumes is None else Term(resumes),
    )


@pytest.fixture
def run() -> RunStore:
    return RunStore(MemoryStore(), RunId("r1"))


def test_revisions_are_created_once_and_the_newest_counts(run: RunStore) -> None:
    assert run.desired() is None
    for revision in range(1, 12):
        assert run.create_desired(desired(revision))
    assert not run.create_desired(desired(11, target=3))
    assert run.desired() == desired(11)
    assert run.create_desired(desired(12, target=3, resumes=4))
    assert run.desired() == desired(12, target=3, resumes=4)


def test_terms_count_up_and_only_those_with_a_base_are_visible(run: RunStore) -> None:
    assert run.terms() == (0, {})
    assert run.highest_term() == 0
    assert [run.claim_term("one", "now"), run.claim_term("two", "now")] == [1, 2]
    second = TermBase(from_term=Term(1), checkpoint_step=Step(5), adopted_step=None)
    assert run.create_base(Term(2), second)
    assert run.terms() == (2, {Term(2): second})
    assert not run.claim_just(Term(2), "three", "now")
    assert run.claim_just(Term(3), "three", "now")
    assert run.highest_term() == 3


def test_a_base_is_never_changed(run: RunStore) -> None:
    term = run.claim_term("one", "now")
    assert run.create_base(term, BASE)
    assert run.create_base(term, BASE)
    assert not run.create_base(term, TermBase(from_term=None, checkpoint_step=Step(1), adopted_step=None))
    assert run.terms()[1] == {term: BASE}


def test_lost_answers_are_resolved_by_reading_back() -> None:
    store = ForgetfulStore(answer="exists")
    run = RunStore(store, RunId("r1"))
    store.forgets = True
    assert run.claim_term("one", "now") == 1
    assert run.create_base(Term(1), BASE)
    assert run.create_desired(desired(1))
    assert not RunStore(store, RunId("r1")).claim_just(Term(1), "two", "now")


def test_an_error_after_the_claim_costs_a_term_and_nothing_else() -> None:
    store = ForgetfulStore(answer="error")
    run = RunStore(store, RunId("r1"))
    store.forgets = True
    with pytest.raises(StoreUnavailable):
        run.claim_term("one", "now")
    term = run.claim_term("one", "now")
    assert term == 2
    store.forgets = True
    with pytest.raises(StoreUnavailable):
        run.create_base(term, BASE)
    assert run.create_base(term, BASE)
    assert run.terms() == (2, {Term(2): BASE})


def test_segments_are_listed_in_order_and_read_back(run: RunStore) -> None:
    for term, sequence in ((1, 2), (1, 1), (2, 1), (1, 10)):
        run.put_segment("events", Term(term), sequence, [{"step": sequence, "text": "a\u2028b"}, {"term": term}])
    found = run.segments("events")
    assert [(term, sequence) for term, sequence, _ in found] == [(1, 1), (1, 2), (1, 10), (2, 1)]
    assert run.segment("events", found[3][2]) == [{"step": 1, "text": "a\u2028b"}, {"term": 2}]
    assert run.segments("logs") == []


def test_stray_files_are_passed_over(run: RunStore) -> None:
    assert run.create_desired(desired(1))
    run.claim_term("one", "now")
    run.put_segment("events", Term(1), 1, [])
    for stray in ("desired/zz.json", "terms/.DS_Store", "terms/zz~", f"terms/{padded(1)}.json.orig", "events/x.jsonl"):
        run.store.put(run.key(stray), b"?")
    assert run.desired() == desired(1)
    assert run.terms() == (1, {})
    assert run.highest_term() == 1
    assert len(run.segments("events")) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_document_is_told_with_its_place(run: RunStore, content: bytes) -> None:
    run.store.put(run.key("spec-1.json"), content)
    with pytest.raises(StoreDamaged) as caught:
        run.spec(1)
    assert caught.value.where == "memory://runs/r1/spec-1.json"
    assert run.spec(2) is None


def test_one_run_does_not_see_another_whose_id_begins_alike() -> None:
    store = MemoryStore()
    other = RunStore(store, RunId("r10"))
    other.claim_term("x", "now")
    run = RunStore(store, RunId("r1"))
    assert run.highest_term() == 0
    assert run.names("terms") == []
    assert run.uri == "memory://runs/r1"
