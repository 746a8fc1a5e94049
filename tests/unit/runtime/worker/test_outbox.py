"""What the next controller has to hear, and what it need not."""

from __future__ import annotations

import pytest

from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.types import Generation, Rank, Step, WorldSize
from launcher.runtime.protocol.messages import Draining, Error, Left, Loaded, Saved, SaveFailed, ToController
from launcher.runtime.worker.outbox import Outbox

pytestmark = pytest.mark.unit


def saved(step: int, generation: int) -> Saved:
    part = CheckpointPart(
        step=Step(step), generation=Generation(generation), rank=Rank(0), world_size=WorldSize(1), chunk_count=0, chunks=()
    )
    return Saved.of(part, 0.5)


FAILED = SaveFailed(Step(10), Generation(1), "disk full")
ERROR = Error("ZeroDivisionError", 1, Step(3), Generation(1), recoverable=True)
DRAINING = Draining("SIGTERM", 30.0, "process 1 was sent SIGTERM")


def outbox(*messages: ToController) -> Outbox:
    box = Outbox()
    for message in messages:
        box.said(message, 100.0)
    return box


def test_what_lasts_is_said_again_in_order_and_the_rest_is_not() -> None:
    box = outbox(saved(10, 1), Loaded(Step(1)), ERROR, Left(Generation(1), None))
    assert box.messages(100.0) == [saved(10, 1), ERROR]
    assert box.messages(200.0) == [saved(10, 1), ERROR], "however often there is a new controller"


def test_what_became_of_a_checkpoint_ends_what_there_is_to_say_of_it() -> None:
    box = outbox(saved(10, 1), FAILED, saved(10, 2), saved(20, 1), ERROR)
    box.forget_save(Step(10), Generation(1))
    assert box.messages(100.0) == [saved(10, 2), saved(20, 1), ERROR]


def test_undecided_is_what_was_stored_and_not_what_failed() -> None:
    box = outbox(saved(10, 1), FAILED, saved(20, 2))
    assert [*box.undecided] == [(10, 1), (20, 2)]
    box.forget_save(Step(10), Generation(1))
    assert [*box.undecided] == [(20, 2)]


def test_a_deadline_has_come_nearer_when_it_is_said_again() -> None:
    box = outbox(DRAINING)
    assert box.messages(110.0) == [Draining("SIGTERM", 20.0, DRAINING.detail)]
    assert box.messages(131.0) == [Draining("SIGTERM", 0.0, DRAINING.detail)]
