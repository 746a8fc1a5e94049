"""Controllers race for leadership, each a process of its own: one holder a term, one unambiguous chain, nobody's commit is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.checkpoint.catalog import all_checkpoints, list_checkpoints, read_manifest
from launcher.core.store import open_store
from launcher.core.types import Step, Term
from launcher.record.lineage import TermBase, in_lineage, lineage
from launcher.record.run_store import RunStore, padded
from tests.storage.controllers import RUN, save

pytestmark = pytest.mark.storage

ROOT = Path(__file__).resolve().parents[2]
HOLDERS = ("ann", "bob")
TURNS = 25


def test_two_controllers_race(uri: str) -> None:
    start = time.time() + 1.0
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.storage.controllers", uri, holder, str(TURNS), str(start)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for holder in HOLDERS
    ]
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    beliefs = {holder: json.loads(answer) for holder, answer in zip(HOLDERS, answers, strict=True)}

    run = RunStore(open_store(uri), RUN)
    held = {belief["term"]: holder for holder in HOLDERS for belief in beliefs[holder]}
    assert sorted(held) == list(range(1, len(HOLDERS) * TURNS + 1)), "every term has one holder, none is skipped"
    for term, holder in held.items():
        document = run.read(f"terms/{padded(term)}.json")
        assert document is not None
        assert document["holder"] == holder

    highest, bases = run.terms()
    assert highest == len(held)
    believed = {belief["term"]: tuple(belief["base"]) for holder in HOLDERS for belief in beliefs[holder] if belief["base"]}
    assert {term: (base.from_term, base.checkpoint_step) for term, base in bases.items()} == believed
    assert len(bases) < len(held), "some term has no base"

    chain = lineage(bases)
    assert chain[-1].term == max(bases)
    listed = list_checkpoints(run, chain)
    assert len({info.step for info in listed}) >= max(info.step for info in listed), "no step of the chain lacks its checkpoint"
    for info in listed:
        assert read_manifest(run, info).state["holder"] == held[info.term]
    for below, above in pairwise(chain):
        assert below.end is not None
        assert below.end <= above.start
        assert in_lineage(chain, below.term, below.end)
    # What was reported as committed when nobody else had claimed is in the lineage of whoever claimed next: it looked afterwards.
    for holder in HOLDERS:
        for belief in beliefs[holder]:
            later = [term for term in bases if term > belief["term"]]
            if later and belief["committed"]:
                then = lineage({term: base for term, base in bases.items() if term <= min(later)})
                assert all(in_lineage(then, belief["term"], step) for step in belief["committed"])


def test_a_checkpoint_of_the_lower_term_is_invisible_after_the_higher_base(uri: str) -> None:
    run = RunStore(open_store(uri, create=True), RUN)
    first = run.claim_term("ann", "now")
    run.create_base(first, TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    assert save(run, first, 10, "ann")
    second = run.claim_term("bob", "now")
    assert not save(run, first, 20, "ann"), "from the claim on, nothing of the lower term is reported as committed"
    chain = lineage(run.terms()[1])
    assert [info.step for info in list_checkpoints(run, chain)] == [20, 10], "a claim alone changes nothing for readers"
    run.create_base(second, TermBase(from_term=first, checkpoint_step=Step(10), adopted_step=None))
    assert not save(run, first, 30, "ann")
    chain = lineage(run.terms()[1])
    assert [(info.step, info.term) for info in list_checkpoints(run, chain)] == [(10, first)]
    assert len(all_checkpoints(run)) == 3


def test_a_term_without_a_base_is_skipped(uri: str) -> None:
    run = RunStore(open_store(uri, create=True), RUN)
    first = run.claim_term("ann", "now")
    run.create_base(first, TermBase(from_term=None, checkpoint_step=None, adopted_step=None))
    save(run, first, 10, "ann")
    run.claim_term("bob dies here", "now")
    third = run.claim_term("cy", "now")
    run.create_base(third, TermBase(from_term=first, checkpoint_step=Step(10), adopted_step=None))
    highest, bases = run.terms()
    assert (highest, sorted(bases)) == (Term(3), [first, third])
    assert [entry.term for entry in lineage(bases)] == [first, third]
    assert save(run, third, 20, "cy")
    assert [info.step for info in list_checkpoints(run, lineage(bases))] == [20, 10]
