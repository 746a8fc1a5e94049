from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from launcher.core.types import Step, WorkerId
from launcher.jobs.changes import change_bar, change_sentence, crew, short_seconds
from launcher.record.desired import WorkerBounds
from launcher.record.members import ResizeFacts
from launcher.record.status import JobState, RunStatus

pytestmark = pytest.mark.unit

CHANGE = ResizeFacts(
    cause="grow",
    reason="asked for",
    from_size=3,
    to_size=4,
    detect_s=None,
    agree_s=0.01,
    form_s=0.02,
    move_s=0.01,
    first_step_s=0.21,
    total_s=0.25,
    pause_s=0.05,
    slowdown=0.93,
    joined=(WorkerId("w5"),),
    left=(),
)


def test_a_change_is_one_sentence() -> None:
    assert change_sentence(CHANGE, Step(1200)) == (
        "3 -> 4 workers at step 1200 (grow: asked for): pause 0.05 s; agree 0.01, form 0.02, move 0.01, first step 0.21 s; "
        "survivors at 93 % speed while newcomers warmed up"
    )


@pytest.mark.parametrize(
    ("change", "step", "sentence"),
    [
        ({"from_size": 4, "to_size": 3}, None, "4 -> 3 workers"),
        ({"from_size": 4, "to_size": 4, "cause": "evicted"}, None, "4 workers, as before (evicted: a worker was given up)"),
        ({"from_size": 1, "to_size": 2, "cause": "resize", "pause_s": 0}, 0, "1 -> 2 workers at step 0 (resize: asked for): pause 0.000 s"),
        ({"from_size": 4, "to_size": 3, "cause": "drain", "detect_s": 0.1}, None, "4 -> 3 workers (drain): detect 0.10 s"),
        ({"from_size": 4, "to_size": 3, "reason": "why", "pause_s": None, "slowdown": None}, None, "4 -> 3 workers (why)"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out(change: dict[str, Any], step: int | None, sentence: str) -> None:
    assert change_sentence(ResizeFacts(**{"cause": "", **change}), Step(step) if step is not None else None) == sentence


def test_the_bar_is_to_scale() -> None:
    assert change_bar(CHANGE) == "a" + "fff" + "m" + "s" * 27 + "  0.25 s in all"
    assert change_bar(replace(CHANGE, total_s=None)).endswith("s")
    assert change_bar(ResizeFacts(cause="", from_size=1, to_size=2)) == ""
    assert change_bar(ResizeFacts(cause="", from_size=1, to_size=2, form_s=0.0)) == ""


@pytest.mark.parametrize(
    ("workers", "status", "words"),
    [
        ((3, 3, 3), {"world_size": 3}, "3 workers"),
        ((1, 1, 1), {"world_size": 1, "generation": 2}, "1 worker, generation 2"),
        ((2, 6, 3), {"world_size": 3}, "3 workers (2..6)"),
        ((2, 6, 6), {"world_size": 3}, "3 of 6 workers (2..6)"),
        ((2, 6, 2), {"world_size": 3, "generation": 1}, "3 workers, 2 wanted (2..6), generation 1"),
        ((2, 2, 2), {"world_size": 0, "waiting_for": "a GPU"}, "0 of 2 workers, waits for a GPU"),
    ],
)
def test_the_crew_says_what_is_there_and_what_is_wanted(workers: tuple[int, int, int], status: dict[str, Any], words: str) -> None:
    low, high, target = workers
    bounds = WorkerBounds(min=low, max=high, target=target)
    assert crew(RunStatus(run_id="r", name="r", state=JobState.RUNNING, workers=bounds, **status)) == words


def test_seconds_have_as_many_digits_as_anybody_compares() -> None:
    assert [short_seconds(value) for value in (0.0, 0.0042, 0.05, 0.254, 9.99, 14.13, 74.6)] == [
        "0.000",
        "0.004",
        "0.05",
        "0.25",
        "9.99",
        "14.1",
        "74.6",
    ]
