from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.checkpoint.retention import expired
from launcher.core.types import Step, Term
from launcher.record.lineage import TermBase, in_lineage, lineage

pytestmark = pytest.mark.unit


def info(step: int, term: int = 1) -> CheckpointInfo:
    return CheckpointInfo(Step(step), Term(term))


def base(from_term: int | None = None, checkpoint: int | None = None) -> TermBase:
    return TermBase(
        from_term=None if from_term is None else Term(from_term),
        checkpoint_step=None if checkpoint is None else Step(checkpoint),
        adopted_step=None,
    )


ONE_TERM = {Term(1): base()}


def test_the_newest_stay() -> None:
    mine = [info(step) for step in (20, 15, 10, 5)]
    assert expired(mine, mine, keep=2, bases=ONE_TERM, pins=(), newest_whole=info(20)) == [info(5), info(10)]
    assert expired(mine, mine, keep=4, bases=ONE_TERM, pins=(), newest_whole=info(20)) == []


def test_the_newest_whole_one_stays_however_old() -> None:
    mine = [info(step) for step in (20, 15, 10, 5)]
    assert expired(mine, mine, keep=1, bases=ONE_TERM, pins=(), newest_whole=info(10)) == [info(5), info(15)]


def test_pins_and_bases_stay() -> None:
    mine = [info(20, 2), info(15), info(10), info(5)]
    bases = {Term(1): base(), Term(2): base(1, 10)}
    assert expired(mine, mine, keep=1, bases=bases, pins={info(5).key}, newest_whole=info(20, 2)) == [info(15)]


def test_others_go_once_training_has_passed_them() -> None:
    bases = {Term(1): base(), Term(2): base(1, 5)}
    mine = [info(10, 2), info(5)]
    others = [info(10), info(15)]
    assert expired(mine + others, mine, keep=3, bases=bases, pins=(), newest_whole=info(10, 2)) == [info(10)]


steps = st.integers(0, 6).map(lambda count: 5 * count)


@given(
    st.sets(st.tuples(steps, st.integers(1, 4)), min_size=1),
    st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 3)), st.one_of(st.none(), steps)), min_size=4, max_size=4),
    st.integers(1, 3),
    st.data(),
)
def test_what_is_needed_never_goes(
    names: set[tuple[int, int]], drawn: list[tuple[int | None, int | None]], keep: int, data: st.DataObject
) -> None:
    bases = {Term(number): base(*given) for number, given in enumerate(drawn, 1)}
    everything = [info(*name) for name in names]
    belonging = [item for item in everything if in_lineage(lineage(bases), item.term, item.step)]
    if not belonging:
        return
    whole = data.draw(st.sampled_from(belonging))
    going = expired(everything, belonging, keep=keep, bases=bases, pins=(), newest_whole=whole)
    newest = sorted(belonging, key=lambda item: (item.step, item.term))[-keep:]
    assert whole not in going
    assert not set(newest) & set(going)
    for item in going:
        assert not any(given.checkpoint_step == item.step and term > item.term for term, given in bases.items())
        assert item in belonging or item.step <= whole.step
