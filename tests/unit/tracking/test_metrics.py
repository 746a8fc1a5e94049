from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.tracking.metrics import CommittedTime, MetricWindow, goodput, throughput, trained_seconds

pytestmark = pytest.mark.unit


def add(window: MetricWindow, step: int, loss: float = 1.0, seconds: float = 0.5, **metrics: float) -> dict | None:
    return window.add(step, loss=loss, metrics=metrics, seconds=seconds, time=f"t{step}")


def test_a_row_is_the_mean_of_its_window() -> None:
    window = MetricWindow(3, global_batch_size=8)
    assert add(window, 1, loss=1.0, accuracy=0.0) is None
    assert add(window, 2, loss=2.0, accuracy=0.5) is None
    assert add(window, 3, loss=6.0, accuracy=1.0) == {
        "step": 3,
        "time": "t3",
        "seconds": 1.5,
        "loss": 3.0,
        "samples_per_s": 16.0,
        "accuracy": 0.5,
    }
    assert window.flush() is None


def test_windows_end_at_multiples_wherever_training_goes_on() -> None:
    window = MetricWindow(10, global_batch_size=8)
    rows = [row for step in range(8, 34) if (row := add(window, step))]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[0]["seconds"] == pytest.approx(1.5)
    last = window.flush()
    assert last is not None
    assert last["step"] == 33


def test_a_step_taken_again_replaces_what_followed() -> None:
    window = MetricWindow(4, global_batch_size=8)
    add(window, 1, loss=1.0)
    add(window, 2, loss=100.0)
    add(window, 3, loss=100.0)
    add(window, 2, loss=3.0)
    row = window.flush()
    assert row is not None
    assert (row["step"], row["loss"], row["seconds"]) == (2, 2.0, 1.0)


def test_a_metric_cannot_take_the_place_of_ours() -> None:
    ours = {"step": 7.0, "samples_per_s": 0.0, "seconds": 0.0}
    row = MetricWindow(1, global_batch_size=8).add(1, loss=1.0, metrics=ours, seconds=0.5, time="t1")
    assert row is not None
    assert (row["step"], row["samples_per_s"]) == (1, 16.0)


def test_what_is_not_finite_is_null_and_an_instant_step_has_no_throughput() -> None:
    row = add(MetricWindow(1, global_batch_size=8), 1, loss=math.nan, seconds=0.0)
    assert row is not None
    assert row["loss"] is None
    assert row["samples_per_s"] is None


def test_values_that_only_some_steps_have() -> None:
    window = MetricWindow(2, global_batch_size=8)
    window.add(1, loss=1.0, metrics={}, seconds=1, time="", grad_norm=4.0)
    row = window.add(2, loss=1.0, metrics={"accuracy": 0.25}, seconds=1, time="")
    assert row is not None
    assert (row["grad_norm"], row["accuracy"]) == (4.0, 0.25)


def test_goodput_and_throughput() -> None:
    assert goodput(30, 40) == 0.75
    assert goodput(41, 40) == 1.0
    assert goodput(0, 0) is None
    assert throughput(64, 0.5) == 128
    assert throughput(64, 0) is None
    assert trained_seconds([{"seconds": 1.5}, {"step": 3}, {"seconds": 2}]) == 3.5


def test_steps_that_were_rolled_back_do_not_count() -> None:
    time = CommittedTime(start=10, seconds=100)
    for step in (11, 12, 13):
        time.commit(step, 2.0)
    assert time.seconds == 106
    time.commit(12, 5.0)
    assert time.seconds == 107
    with pytest.raises(ValueError, match="step 14 does not follow: 12 is committed"):
        time.commit(14, 1.0)
    with pytest.raises(ValueError, match="began after 10"):
        time.commit(10, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 9)), max_size=60))
def test_settling_changes_no_sum(actions: list[tuple[bool, int, int]]) -> None:
    plain, settled = CommittedTime(), CommittedTime()
    step, floor = 0, 0
    for settle, back, seconds in actions:
        step = max(floor, step - back) + 1
        plain.commit(step, seconds)
        settled.commit(step, seconds)
        if settle:
            floor = step
            settled.settle(step)
        assert settled.seconds == plain.seconds
