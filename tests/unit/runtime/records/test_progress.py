"""Rows wait until every member holds their steps; then they count, once and in order."""

from __future__ import annotations

import pytest

from launcher.core.types import Step
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.messages import Row
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.progress import Progress
from tests.support.recording import said

pytestmark = pytest.mark.unit


@pytest.fixture
def progress(run: RunStore, spec: JobSpec) -> Progress:
    return Progress.after(inherit(run), Step(0), spec)


def ranges(rows: list[Row]) -> list[tuple[int, int, int]]:
    return [(each.first, each.row.step, each.generation) for each in rows]


def test_rows_wait_for_the_slowest_member_and_are_taken_once(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20, loss=0.25))
    progress.take(said(1, 10))
    assert progress.committed(9) == []
    assert ranges(progress.committed(15)) == [(1, 10, 1)]
    assert (progress.step, progress.train_loss) == (15, 0.5)
    assert [(each.first, each.row.step) for each in progress.committed(20)] == [(11, 20)]
    assert progress.train_loss == 0.25
    assert progress.samples_per_s == 640.0
    assert progress.committed(20) == []
    assert (progress.step, progress.seconds) == (20, 2.0)
    assert progress.committed(3) == []
    assert progress.step == 20, "a late word takes nothing back"


def test_where_a_row_is_missing_none_is_taken_until_it_was_said_again(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(21, 30))
    assert ranges(progress.committed(30)) == [(1, 10, 1)]
    assert not progress.lacks_rows(30, most=20)
    assert progress.lacks_rows(31, most=20)
    for first in (1, 11, 21):
        progress.take(said(first, first + 9))
    assert ranges(progress.committed(30)) == [(11, 20, 1), (21, 30, 1)]
    assert not progress.lacks_rows(31, most=1)


def test_what_nobody_holds_any_more_is_dropped_and_taken_again_from_the_next_generation(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20, loss=9.0))
    progress.committed(10)
    progress.restart(17)
    assert progress.lacks_rows(17, most=6)
    progress.take(said(18, 20, generation=2))
    assert progress.committed(20) == [], "steps 11 to 17 have no row yet"
    progress.take(said(11, 17, loss=0.75))
    progress.take(said(18, 20, generation=2, loss=0.25))
    assert ranges(progress.committed(17)) == [(11, 17, 1)]
    assert progress.train_loss == 0.75
    assert ranges(progress.committed(20)) == [(18, 20, 2)]
    assert progress.seconds == 3.0


def test_a_row_that_ends_where_the_next_generation_begins_stays(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 17))
    progress.restart(17)
    progress.take(said(11, 17))
    assert ranges(progress.committed(17)) == [(1, 10, 1), (11, 17, 1)]


def test_what_was_passed_on_is_never_taken_back(progress: Progress) -> None:
    progress.take(said(1, 10))
    progress.take(said(11, 20))
    progress.committed(20)
    progress.restart(12)
    progress.take(said(11, 20, generation=2))
    progress.take(said(13, 20, generation=2))
    assert progress.committed(20) == []
    progress.take(said(13, 25, generation=2))
    assert ranges(progress.committed(25)) == [(21, 25, 2)], "of a row that overlaps, the rest counts"


def test_a_new_term_goes_on_where_the_ledger_of_earlier_ones_ends(run: RunStore, spec: JobSpec) -> None:
    progress = Progress.after(inherit(run), Step(20), spec)
    progress.take(said(11, 20))
    progress.take(said(21, 30))
    assert ranges(progress.committed(30)) == [(21, 30, 1)]


def test_an_evaluation_is_taken_once(progress: Progress) -> None:
    assert progress.evaluated(20, {"accuracy": 0.5})
    assert not progress.evaluated(20, {"accuracy": 0.5})
    assert progress.metrics == {"accuracy": 0.5}
