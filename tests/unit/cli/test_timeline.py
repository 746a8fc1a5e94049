from __future__ import annotations

from typing import Any

import pytest

from launcher.cli.timeline import PHRASES, facts
from launcher.record.events import RecordedEvent, decode

pytestmark = pytest.mark.unit
STAMP = {"time": "2026-01-01T00:00:00.000Z", "term": 1, "generation": 2, "step": 30}


def recorded(record: dict[str, Any]) -> RecordedEvent:
    return decode({**STAMP, **record}, where="")


@pytest.mark.parametrize(
    ("kind", "record", "line"),
    [
        (
            "generation_prepared",
            {"cause": "grow", "to_generation": 3, "world_size": 4, "joined": ["w5"], "left": [], "reason": "asked for"},
            "grow, generation 3, 4 workers, joining w5, asked for",
        ),
        ("generation_withdrawn", {"to_generation": 3, "reason": "w5 could not connect"}, "generation 3, w5 could not connect"),
        (
            "worker_lost",
            {"worker": "w2", "rank": 0, "pid": 17, "node": "here", "detail": "killed by signal 9"},
            "w2, rank 0, pid 17 on here, killed by signal 9",
        ),
        ("worker_lost", {"worker": "w2", "rank": None, "pid": 17, "node": None, "detail": ""}, "w2  pid=17"),
        ("worker_evicted", {"worker": "w2", "reason": "silent for 3 s"}, "w2, silent for 3 s"),
        ("worker_draining", {"worker": "w2", "reason": "SIGTERM", "deadline_s": 25.0}, "w2, SIGTERM, leaves within 25 s"),
        ("worker_released", {"worker": "w2"}, "w2"),
        ("worker_error", {"worker": "w2", "rank": 1, "at": 7, "detail": "ValueError: no"}, "w2, rank 1, at step 7, ValueError: no"),
        ("straggler", {"worker": "w2", "ratio": 2.5}, "w2, takes 2.5 times as long as the others"),
        ("policy", {"decision": "hold", "reason": "a resize would not pay: {braces}"}, "hold, a resize would not pay: {braces}"),
        ("generation_prepared", {"to_generation": 3, "world_size": 1}, "generation 3, 1 worker"),
        ("workers_adopted", {"workers": [{"id": "w1", "rank": 0, "pid": 5, "node": "n"}]}, "w1 (rank 0, pid 5 on n)"),
        ("something_new", {"worker": "w2", "figure": 1.5, "nothing": None}, "worker=w2 figure=1.5 nothing=None"),
    ],
)
def test_an_event_says_what_it_has(kind: str, record: dict[str, Any], line: str) -> None:
    assert facts(recorded({"kind": kind, **record})) == line


@pytest.mark.parametrize("kind", [*PHRASES, "resized", "anything"])
def test_an_event_without_facts_is_no_error(kind: str) -> None:
    facts(recorded({"kind": kind}))
    assert "odd=[1 2]" in facts(recorded({"kind": kind, "odd": [1, 2]})) or kind == "resized"


def test_a_change_says_who_joined_and_left() -> None:
    change = {"cause": "lost", "from_size": 4, "to_size": 3, "joined": [], "left": ["w2", "w3"]}
    assert facts(recorded({"kind": "resized", **change})) == "4 -> 3 workers at step 30 (lost: a worker was lost); left w2, w3"
