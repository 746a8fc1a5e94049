from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.runs import MissingRecord, first_step_at, points_of, records, steady_steps_per_s
from benchmarks.sandbox import in_turn
from benchmarks.throughput import CASES

pytestmark = pytest.mark.unit


def write(run: Path, stream: str, name: str, *items: dict) -> None:
    (run / stream).mkdir(parents=True, exist_ok=True)
    (run / stream / name).write_text("".join(json.dumps(item) + "\n" for item in items))


def test_the_first_step_is_the_first_event_of_that_kind(tmp_path: Path) -> None:
    write(tmp_path, "events", "1-2.jsonl", {"kind": "first_step", "time": "2026-01-01T00:00:02.500Z"})
    write(tmp_path, "events", "1-1.jsonl", {"kind": "started", "time": "2026-01-01T00:00:00.000Z"})
    assert first_step_at(tmp_path) == 1767225602.5
    write(tmp_path, "events", "1-2.jsonl", {"kind": "started", "time": "2026-01-01T00:00:00.000Z"})
    with pytest.raises(MissingRecord, match="no event of kind first_step"):
        first_step_at(tmp_path)


def test_steady_is_what_follows_the_warm_up() -> None:
    slow_start = [(100.0, 10), (110.0, 20), (111.0, 30), (112.0, 40), (115.0, 70)]
    assert steady_steps_per_s(slow_start, warm_up_s=10) == 10.0
    with pytest.raises(MissingRecord, match="too short"):
        steady_steps_per_s(slow_start, warm_up_s=14)


def test_points_come_from_training_rows_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        "metrics",
        "1.jsonl",
        {"step": 10, "time": "1970-01-01T00:00:05.000Z", "samples_per_s": 1.0},
        {"step": 10, "time": "1970-01-01T00:00:06.000Z", "evaluation": True},
    )
    assert points_of(records(tmp_path, "metrics")) == [(5.0, 10)]


def test_rounds_alternate_their_order() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = in_turn(3, {"a": lambda: measure("a"), "b": lambda: measure("b")}, lambda text: None)
    assert "".join(order) == "abbaab"
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_cases_cover_full_size_and_fewer_workers_at_the_same_load() -> None:
    bars = {name: (case.bar.limit, case.width) for name, case in CASES.items()}
    assert bars["resnet-1of1"] == (0.98, 64)
    assert bars["mlp-2of2"] == (0.98, 32)
    assert bars["mlp-1of2"] == (0.95, 32)
    assert bars["resnet-1of4"] == (0.95, 16)
    assert bars["resnet-2of4"] == (0.95, 16)
    assert len(CASES) == 10
