"""What a benchmark reads of a finished run: its events and rows of metrics, straight from the run store's files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any


class MissingRecord(Exception):
    """The run does not hold what the benchmark measures."""


def records(run: Path, stream: str) -> list[dict[str, Any]]:
    """All records of a stream (events or metrics) of a run's folder, in order."""
    return [json.loads(text) for path in sorted((run / stream).glob("*.jsonl")) for text in path.read_text().splitlines()]


def seconds_of(moment: str) -> float:
    """Seconds since 1970 of an ISO 8601 moment."""
    return datetime.fromisoformat(moment).timestamp()


def first_step_at(run: Path) -> float:
    """When the first step was committed, in seconds since 1970."""
    for event in records(run, "events"):
        if event["kind"] == "first_step":
            return seconds_of(event["time"])
    raise MissingRecord(f"{run} has no event of kind first_step")


def steady_steps_per_s(points: Iterable[tuple[float, int]], *, warm_up_s: float) -> float:
    """Steps a second between the first point at least `warm_up_s` after the very first one and the last point.

    Points are (seconds, steps done), in order. Raises MissingRecord where less than half a warm-up is left to measure.
    """
    known = list(points)
    steady = [point for point in known if point[0] - known[0][0] >= warm_up_s]
    if len(steady) < 2 or steady[-1][0] - steady[0][0] < warm_up_s / 2:
        raise MissingRecord(f"{len(known)} points, {len(steady)} of them after {warm_up_s:g} s of warm-up: too short to be measured")
    return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """(seconds, steps done) of rows of training metrics; rows of evaluations have no throughput and are left out."""
    return [(seconds_of(row["time"]), row["step"]) for row in rows if row.get("samples_per_s") is not None]
