from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import Bar, against_itself, alone, apart, compare, counted, document, exit_code, line, median_interval, verdict

pytestmark = pytest.mark.unit

AT_LEAST = Bar(0.98, "at_least")
AT_MOST = Bar(1.3, "at_most")


@pytest.mark.parametrize(
    ("n", "ends"), [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (15, (4, 12)), (16, (4, 13)), (20, (6, 15)), (100, (40, 61))]
)
def test_the_interval_of_the_median_has_the_tabulated_order_statistics(n: int, ends: tuple[int, int] | None) -> None:
    assert median_interval([float(value) for value in range(n, 0, -1)]) == ends


@given(st.integers(6, 60))
def test_the_interval_is_as_narrow_as_the_confidence_allows(n: int) -> None:
    interval = median_interval(list(range(1, n + 1)))
    assert interval is not None
    k = int(interval[0])
    assert interval[1] == n + 1 - k

    def outside(count: int) -> float:
        return 2 * sum(math.comb(n, number) for number in range(count)) / 2**n

    assert outside(k) <= 0.05 < outside(k + 1)


@pytest.mark.parametrize(
    ("interval", "bar", "holds"),
    [
        ((0.98, 1.1), AT_LEAST, True),
        ((0.9, 0.979), AT_LEAST, False),
        ((0.9, 0.98), AT_LEAST, None),
        ((1.0, 1.3), AT_MOST, True),
        ((1.31, 1.4), AT_MOST, False),
        ((1.3, 1.4), AT_MOST, None),
        (None, AT_MOST, None),
        ((0, 9), None, None),
    ],
)
def test_a_bar_is_decided_only_by_the_whole_interval(interval: tuple[float, float] | None, bar: Bar | None, holds: bool | None) -> None:
    assert verdict(interval, bar) is holds


def test_a_comparison_is_pair_by_pair() -> None:
    theirs = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    figure = compare("speed", "steps/s", [value * 0.99 for value in theirs], "DDP", theirs, AT_LEAST, more_is_better=True)
    assert figure.ratio == pytest.approx(0.99)
    assert figure.interval == pytest.approx((0.99, 0.99))
    assert (figure.holds, figure.n, figure.theirs, figure.theirs_worst) == (True, 6, 6.0, 1.0)


def test_a_bar_on_the_difference() -> None:
    bare = [0.01, 0.02, 0.03, 0.01, 0.02, 0.03]
    ours = [value + 0.05 for value in bare]
    figure = compare("import", "s", ours, "python", bare, Bar(0.1, "at_most", "difference"), more_is_better=False)
    assert figure.difference == pytest.approx(0.05)
    assert figure.holds is True
    assert figure.ours_worst == pytest.approx(0.08)
    assert "difference 0.050" in line(figure)


def test_measurements_that_are_not_in_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 measurements of ours, 1 of DDP"):
        compare("speed", "steps/s", [1.0, 2.0], "DDP", [1.0], more_is_better=True)


def test_a_peer_against_itself_uses_every_measurement_once() -> None:
    figure = against_itself("speed", "steps/s", "DDP", [1.0, 2.0, 3.0, 6.0, 5.0], more_is_better=True)
    assert figure is not None
    assert (figure.name, figure.ratio, figure.n, figure.bar, figure.holds) == ("A/A speed", 0.5, 2, None, None)
    assert against_itself("speed", "steps/s", "DDP", [1.0], more_is_better=True) is None


def test_the_report_has_one_row_a_figure_and_fails_only_on_a_bar_that_fails() -> None:
    good = compare("a", "s", [1.0] * 6, "b", [1.0] * 6, AT_MOST, more_is_better=False)
    open_ = compare("c", "s", [1.0, 2.0], "d", [1.0, 1.0], AT_MOST, more_is_better=False)
    bad = compare("e", "s", [2.0] * 6, "f", [1.0] * 6, AT_MOST, more_is_better=False)
    single = alone("g", "s", [1.0, 3.0, 2.0], more_is_better=False)
    rows = json.loads(json.dumps(document([good, open_, bad, single], {"pairs": 6})))["results"]
    asked = {"name", "unit", "ours", "peer", "theirs", "ratio", "bar", "holds", "n", "interval"}
    assert all(asked <= set(row) for row in rows)
    assert [row["holds"] for row in rows] == [True, None, False, None]
    assert (rows[3]["ours"], rows[3]["ours_worst"], rows[3]["peer"], rows[3]["theirs"], rows[3]["ratio"]) == (2.0, 3.0, None, None, None)
    assert exit_code([good, open_, single]) == 0
    assert exit_code([good, bad]) == 1
    assert ["holds" in line(good), "unresolved" in line(open_), "FAILS" in line(bad), "bar" in line(single)] == [True, True, True, False]


def test_a_bar_on_the_value_itself_is_about_its_median() -> None:
    bar = Bar(0.25, "at_most", "value")
    assert alone("pause", "s", [0.1] * 10, bar, more_is_better=False).holds is True
    assert alone("pause", "s", [0.3] * 10, bar, more_is_better=False).holds is False
    assert alone("pause", "s", [0.1] * 5, bar, more_is_better=False).holds is None


@pytest.mark.parametrize(("ours", "holds"), [([0.4] * 10, True), ([2.0] * 10, False), ([0.6] * 10, None)])
def test_against_few_of_a_peer_the_whole_range_must_be_on_one_side(ours: list[float], holds: bool | None) -> None:
    figure = apart("pause", "s", ours, "peer", [10.0, 20.0, 15.0], Bar(1 / 20, "at_most"))
    assert figure.holds is holds
    assert figure.interval == (ours[0] / 20.0, ours[0] / 10.0)
    assert figure.ratio == pytest.approx(ours[0] / 15.0)


def test_what_is_counted_holds_or_not() -> None:
    assert counted("lost", "steps", 0, Bar(0, "at_most", "value")).holds is True
    assert counted("done", "changes", 99, Bar(100, "at_least", "value")).holds is False
