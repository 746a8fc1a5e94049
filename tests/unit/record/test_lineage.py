from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.types import Step, Term
from launcher.record.lineage import LineageEntry, TermBase, in_lineage, lineage

pytestmark = pytest.mark.unit

GAP = None
"""A term that was claimed and never got a base."""

histories = st.lists(
    st.one_of(
        st.just(GAP),
        st.fixed_dictionaries(
            {"parent": st.integers(0, 12), "back": st.integers(0, 12), "steps": st.integers(0, 6), "adopted": st.booleans()}
        ),
    ),
    max_size=12,
)


def base(from_term: int | None, *, checkpoint: int | None = None, adopted: int | None = None) -> TermBase:
    return TermBase(
        from_term=None if from_term is None else Term(from_term),
        checkpoint_step=None if checkpoint is None else Step(checkpoint),
        adopted_step=None if adopted is None else Step(adopted),
    )


@given(histories)
def test_the_chain_says_who_did_which_step(history: list[dict[str, int] | None]) -> None:
    """Against a model that writes down, for each term, the whole list of (term, step) that its state came from."""
    bases: dict[Term, TermBase] = {}
    paths: dict[int, list[tuple[int, int]]] = {}
    for term, drawn in enumerate(history, 1):
        if drawn is None:
            continue
        parents = sorted(paths)
        parent = parents[drawn["parent"] % len(parents)] if parents else None
        before = paths[parent] if parent is not None else []
        start = max(len(before) - drawn["back"], 0)
        bases[Term(term)] = base(parent, adopted=start) if drawn["adopted"] else base(parent, checkpoint=start)
        paths[term] = before[:start] + [(term, step) for step in range(start + 1, start + 1 + drawn["steps"])]
    chain = lineage(bases)
    if not bases:
        assert chain == []
        return
    ours = paths[max(paths)]
    reached = len(ours)
    # The newest term has no end: what it has not done yet will belong to the run as well.
    claimed = [(entry.term, step) for entry in chain for step in range(1, reached + 1) if entry.holds(step)]
    assert [pair for pair in claimed if pair in set(ours)] == ours
    assert [step for _, step in claimed] == list(range(1, reached + 1))
    for term, path in paths.items():
        for done_by, step in path:
            if done_by == term:
                belongs = (term, step) in set(ours)
                assert any(entry.term == term and entry.holds(step) for entry in chain) == belongs
                # A checkpoint that sits exactly where a later term started is found through either of the two.
                assert in_lineage(chain, term, step) == belongs


def test_a_term_without_a_base_is_skipped() -> None:
    bases = {Term(1): base(None), Term(3): base(1, checkpoint=20)}
    assert lineage(bases) == [LineageEntry(Term(1), Step(0), Step(20)), LineageEntry(Term(3), Step(20), None, Step(20))]


def test_going_back_behind_an_older_term_cuts_everything_between() -> None:
    bases = {Term(1): base(None), Term(2): base(1, checkpoint=20), Term(3): base(2, checkpoint=10)}
    chain = lineage(bases)
    assert not in_lineage(chain, 1, 15)
    assert in_lineage(chain, 1, 10)
    assert not in_lineage(chain, 2, 25)
    assert in_lineage(chain, 3, 11)


def test_a_start_from_nothing_leaves_the_older_terms_behind() -> None:
    chain = lineage({Term(1): base(None), Term(2): base(None)})
    assert not in_lineage(chain, 1, 5)
    assert in_lineage(chain, 2, 0)


def test_a_base_that_names_itself_or_a_later_term_ends_the_chain() -> None:
    assert [entry.term for entry in lineage({Term(2): base(2, adopted=4)})] == [2]
    assert [entry.term for entry in lineage({Term(1): base(2, adopted=4), Term(2): base(1, adopted=4)})] == [1, 2]
