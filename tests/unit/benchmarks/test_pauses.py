from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pauses import (
    Gap,
    Mark,
    NothingMeasured,
    longest_gap,
    median_step,
    pause_of_job,
    pause_of_survivors,
    read_steps,
    steps_repeated,
)

pytestmark = pytest.mark.unit

CALM = (0.0, 4.0)


def every(step_s: float, begin: float, end: float) -> list[float]:
    return [begin + step_s * number for number in range(round((end - begin) / step_s) + 1)]


def test_a_pause_is_what_the_worst_survivor_felt_beyond_its_step() -> None:
    steps = {1: [*every(0.1, 0, 5), *every(0.1, 5.4, 8)], 2: [*every(0.1, 0, 5), *every(0.1, 5.9, 8)], 3: every(0.1, 0, 5)}
    pause = pause_of_survivors(steps, [1, 2], CALM, (5.0, 7.0))
    assert pause.pause_s == pytest.approx(0.8)
    assert (pause.step_s, pause.resumed_at) == (pytest.approx(0.1), pytest.approx(5.9))


def test_a_step_as_long_as_ever_is_no_pause() -> None:
    assert pause_of_survivors({1: every(0.1, 0, 8)}, [1], CALM, (5.0, 6.0)).pause_s == pytest.approx(0.0, abs=1e-9)


def test_a_gap_that_only_reaches_into_the_change_counts() -> None:
    assert longest_gap([1.0, 2.0, 9.0, 10.0], 3.0, 8.0) == Gap(2.0, 9.0)


def test_where_all_processes_are_replaced_the_job_pauses_from_the_last_step_to_the_first() -> None:
    steps = {1: every(0.1, 0, 5), 2: every(0.1, 0.05, 5.05), 3: every(0.1, 20, 22)}
    pause = pause_of_job(steps, CALM, (5.0, 21.0))
    assert pause.pause_s == pytest.approx(20 - 5.05 - 0.1)


@pytest.mark.parametrize("steps", [{}, {1: [1.0, 2.0]}])
def test_too_little_to_measure_is_said(steps: dict[int, list[float]]) -> None:
    with pytest.raises(NothingMeasured):
        pause_of_survivors(steps, steps, CALM, (5.0, 6.0))
    with pytest.raises(NothingMeasured):
        median_step([1.0, 2.0, 3.0], *CALM)


@pytest.mark.parametrize(("steps", "repeated"), [([1, 2, 3, 4], 0), ([8, 9, 10, 7, 8, 9, 10, 11], 4), ([5, 6, 6, 7], 1), ([], 0)])
def test_steps_repeated_are_how_far_rank_0_fell_back(steps: list[int], repeated: int) -> None:
    marks = [Mark(float(number), step, 4, rank) for number, step in enumerate(steps) for rank in (0, 1)]
    assert steps_repeated(marks, 0.0, 100.0) == repeated


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "7.steps").write_text("1.5\n2.5\n3.")
    assert read_steps(tmp_path) == {7: [1.5, 2.5]}
