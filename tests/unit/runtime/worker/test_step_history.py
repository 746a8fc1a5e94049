"""Rows end at windows, checkpoints and generations; whoever takes over the records of a rank says the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import msgspec
import pytest

from launcher.core.types import Generation, Step
from launcher.record.rows import MetricsRow
from launcher.runtime.protocol.messages import Evaluated, Row, decode_to_controller, encode
from launcher.runtime.worker.step_history import StepHistory

pytestmark = pytest.mark.unit


def records(every: int = 4, save_every: int | None = None) -> StepHistory:
    return StepHistory(every, global_batch_size=8, checkpoint_every_steps=save_every)


def add(kept: StepHistory, step: int, generation: int = 1, loss: float = 1.0) -> Row | None:
    moment = f"t{step}" if kept.wants_time(Step(step)) else ""
    return kept.add(Step(step), Generation(generation), loss=loss, metrics={"accuracy": loss / 2}, seconds=0.5, time=moment, grad_norm=None)


def ranges(rows: Iterable[Row]) -> list[tuple[int, int, int]]:
    return [(row.first, row.row.step, row.generation) for row in rows]


def test_a_row_names_its_steps_and_its_generation() -> None:
    kept = records()
    assert [add(kept, step, loss=float(step)) for step in (1, 2, 3)] == [None] * 3
    row = MetricsRow(step=Step(4), time="t4", seconds=2.0, samples_per_s=16.0, loss=2.5, metrics={"accuracy": 1.25})
    assert add(kept, 4, loss=4.0) == Row(Step(1), Generation(1), row)
    assert kept.rows == (Row(Step(1), Generation(1), row),)
    add(kept, 5)
    assert ranges(kept.rows) == [(1, 4, 1)], "an unfinished window is no row"


def test_rows_end_at_windows_and_at_checkpoints_and_have_their_moment_there() -> None:
    kept = records(4, save_every=6)
    for step in range(1, 13):
        add(kept, step)
    assert ranges(kept.rows) == [(1, 4, 1), (5, 6, 1), (7, 8, 1), (9, 12, 1)]
    assert [row.row.time for row in kept.rows] == ["t4", "t6", "t8", "t12"]


def test_a_row_ends_where_a_generation_does() -> None:
    kept = records()
    add(kept, 1)
    add(kept, 2)
    cut = kept.cut("now")
    assert cut == kept.rows[0]
    assert cut is not None
    assert cut.row.time == "now"
    assert kept.cut("later") is None
    for step in (3, 4, 5):
        add(kept, step, generation=2)
    assert ranges(kept.rows) == [(1, 2, 1), (3, 4, 2)]


def test_what_is_cut_where_a_row_has_just_ended_is_nothing() -> None:
    kept = records(2)
    add(kept, 1)
    add(kept, 2)
    assert kept.cut("now") is None
    assert ranges(kept.rows) == [(1, 2, 1)]


def test_the_receiver_says_the_same_next_row_as_the_giver() -> None:
    giver, receiver = records(), records()
    for step in range(1, 7):
        add(giver, step, loss=float(step))
    giver.evaluated(Step(4), {"accuracy": 0.5})
    for step in range(1, 4):  # what it had before is not what counts
        add(receiver, step, generation=9, loss=99.0)
    receiver.evaluated(Step(2), {"accuracy": 0.0})
    receiver.take(json.loads(json.dumps(giver.to_json())))
    assert (receiver.rows, receiver.evaluations) == (giver.rows, giver.evaluations)
    for step in (7, 8):
        assert add(receiver, step, loss=float(step)) == add(giver, step, loss=float(step))
    assert ranges(receiver.rows) == [(1, 4, 1), (5, 8, 1)]


def test_both_cut_the_same_row_where_the_state_is_handed_over() -> None:
    giver, receiver = records(), records()
    for step in range(1, 7):
        add(giver, step)
    receiver.take(json.loads(json.dumps(giver.to_json())))
    assert giver.cut("now") == receiver.cut("now")
    for step in (7, 8):
        assert add(receiver, step, generation=2) == add(giver, step, generation=2)
    assert ranges(receiver.rows) == ranges(giver.rows) == [(1, 4, 1), (5, 6, 1), (7, 8, 2)]


def test_what_was_taken_is_a_copy() -> None:
    kept = records(1)
    add(kept, 1)
    document = kept.to_json()
    receiver = records(1)
    receiver.take(document)
    add(kept, 2)
    add(receiver, 2, generation=2)
    assert ranges(kept.rows) == [(1, 1, 1), (2, 2, 1)]
    assert ranges(receiver.rows) == [(1, 1, 1), (2, 2, 2)]
    again = records(1)
    again.take(document)
    assert ranges(again.rows) == [(1, 1, 1)]


def test_what_is_durable_is_forgotten_and_no_more() -> None:
    kept = records(2)
    for step in range(1, 8):
        add(kept, step)
        kept.evaluated(Step(step), {"loss": 1.0})
    kept.forget(Step(4))
    assert ranges(kept.rows) == [(5, 6, 1)]
    assert [each.step for each in kept.evaluations] == [5, 6, 7]
    kept.forget(Step(7))
    assert (kept.rows, kept.evaluations) == ((), ())
    add(kept, 8)
    assert ranges(kept.rows) == [(7, 8, 1)], "the unfinished window is not among what was durable"


def test_an_evaluation_that_is_not_finite_can_be_said_in_json() -> None:
    message = records().evaluated(Step(3), {"loss": math.nan, "accuracy": 0.5})
    assert message == Evaluated(Step(3), {"loss": None, "accuracy": 0.5})
    assert decode_to_controller(encode(message)) == message


def test_what_a_faster_rank_made_durable_is_not_said_again_by_a_slower_one() -> None:
    kept = records(2)
    kept.forget(Step(2))
    for step in (1, 2, 3, 4):
        assert (add(kept, step) is not None) == (step % 2 == 0)
        kept.evaluated(Step(step), {"loss": 1.0})
    assert ranges(kept.rows) == [(3, 4, 1)]
    assert [each.step for each in kept.evaluations] == [3, 4]
    receiver = records(2)
    receiver.forget(Step(4))
    receiver.take(kept.to_json())
    assert (receiver.rows, receiver.evaluations) == ((), ())


def test_what_is_no_history_is_not_taken() -> None:
    document = records().to_json()
    with pytest.raises(msgspec.ValidationError):
        records().take({**document, "rows": [{"kind": "row"}]})
