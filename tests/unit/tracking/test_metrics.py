from __future__ import annotations

import json
import math

import pytest

from launcher.core.types import Step
from launcher.record.rows import MetricsRow
from launcher.tracking.metrics import MetricWindow, goodput, throughput

pytestmark = pytest.mark.unit


def add(window: MetricWindow, step: int, loss: float = 1.0, seconds: float = 0.5, **metrics: float) -> MetricsRow | None:
    return window.add(step, loss=loss, metrics=metrics, seconds=seconds, time=f"t{step}")


def test_a_row_is_the_mean_of_its_window() -> None:
    window = MetricWindow(3, global_batch_size=8)
    assert add(window, 1, loss=1.0, accuracy=0.0) is None
    assert add(window, 2, loss=2.0, accuracy=0.5) is None
    assert add(window, 3, loss=6.0, accuracy=1.0) == MetricsRow(
        step=Step(3), time="t3", seconds=1.5, loss=3.0, samples_per_s=16.0, metrics={"accuracy": 0.5}
    )
    assert window.flush() is None


def test_windows_end_at_multiples_wherever_training_goes_on() -> None:
    window = MetricWindow(10, global_batch_size=8)
    rows = [row for step in range(8, 34) if (row := add(window, step))]
    assert [row.step for row in rows] == [10, 20, 30]
    assert rows[0].seconds == pytest.approx(1.5)
    last = window.flush()
    assert last is not None
    assert last.step == 33


def test_a_step_taken_again_replaces_what_followed() -> None:
    window = MetricWindow(4, global_batch_size=8)
    add(window, 1, loss=1.0)
    add(window, 2, loss=100.0)
    add(window, 3, loss=100.0)
    add(window, 2, loss=3.0)
    row = window.flush()
    assert row is not None
    assert (row.step, row.loss, row.seconds) == (2, 2.0, 1.0)


def test_a_metric_cannot_take_the_place_of_ours() -> None:
    ours = {"step": 7.0, "samples_per_s": 0.0, "seconds": 0.0}
    row = MetricWindow(1, global_batch_size=8).add(1, loss=1.0, metrics=ours, seconds=0.5, time="t1")
    assert row is not None
    assert (row.step, row.samples_per_s) == (1, 16.0)


def test_what_is_not_finite_is_null_and_an_instant_step_has_no_throughput() -> None:
    row = add(MetricWindow(1, global_batch_size=8), 1, loss=math.nan, seconds=0.0)
    assert row is not None
    assert row.loss is None
    assert row.samples_per_s is None


def test_values_that_only_some_steps_have() -> None:
    window = MetricWindow(2, global_batch_size=8)
    window.add(1, loss=1.0, metrics={}, seconds=1, time="", grad_norm=4.0)
    row = window.add(2, loss=1.0, metrics={"accuracy": 0.25}, seconds=1, time="")
    assert row is not None
    assert (row.grad_norm, row.metrics["accuracy"]) == (4.0, 0.25)


def test_goodput_and_throughput() -> None:
    assert goodput(30, 40) == 0.75
    assert goodput(41, 40) == 1.0
    assert goodput(0, 0) is None
    assert throughput(64, 0.5) == 128
    assert throughput(64, 0) is None


def test_another_worker_goes_on_with_an_unfinished_window() -> None:
    window, heir = MetricWindow(3, global_batch_size=8), MetricWindow(3, global_batch_size=8)
    add(window, 1, loss=1.0, accuracy=0.25)
    window.add(2, loss=2.0, metrics={}, seconds=0.5, time="t2", grad_norm=4.0)
    add(heir, 2, loss=99.0)
    heir.take(json.loads(json.dumps(window.to_json())))
    row = add(heir, 3, loss=6.0, accuracy=0.75)
    assert row == add(window, 3, loss=6.0, accuracy=0.75)
    assert row is not None
    assert (row.loss, row.metrics["accuracy"], row.grad_norm, row.seconds) == (3.0, 0.5, 4.0, 1.5)


def test_an_empty_window_is_handed_on_too_and_takes_the_place_of_what_was_there() -> None:
    window = MetricWindow(3, global_batch_size=8)
    add(window, 1)
    window.take(json.loads(json.dumps(MetricWindow(3, global_batch_size=8).to_json())))
    assert window.flush() is None


def test_a_loss_that_is_not_finite_stays_one_on_its_way() -> None:
    window, heir = MetricWindow(2, global_batch_size=8), MetricWindow(2, global_batch_size=8)
    add(window, 1, loss=math.inf)
    heir.take(json.loads(json.dumps(window.to_json())))
    row = add(heir, 2)
    assert row is not None
    assert row.loss is None
