"""Rows of metrics and lines of logs come back from their JSON as they were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from launcher.core.errors import StoreDamaged
from launcher.core.types import JsonObject, Step, WorkerId
from launcher.record.rows import RESERVED, EvaluationRow, LogLine, MetricsRow, decode_line, decode_row, encode_line, encode_row

pytestmark = pytest.mark.unit
WHERE = "runs/r/metrics/1-1.jsonl"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FIGURES = NUMBERS | st.none()
STEPS = st.integers(0, 2**40)


def named(*taken: str) -> st.SearchStrategy[dict[str, float | None]]:
    return st.dictionaries(st.text().filter(lambda name: name not in taken), FIGURES, max_size=4)


def stored(document: JsonObject) -> JsonObject:
    read: JsonObject = json.loads(json.dumps(document, allow_nan=False))
    return read


@given(
    st.builds(
        MetricsRow,
        step=STEPS,
        time=st.text(),
        seconds=NUMBERS,
        loss=FIGURES,
        samples_per_s=FIGURES,
        grad_norm=FIGURES | st.just(UNSET),
        metrics=named(*RESERVED) | st.just({"metrics": 1.0, "values": None}),
    )
)
def test_a_training_row_comes_back_as_it_was(row: MetricsRow) -> None:
    assert decode_row(stored(encode_row(row)), where=WHERE) == row


@given(st.builds(EvaluationRow, step=STEPS, time=st.text(), values=named("step", "time", "seconds")))
def test_an_evaluation_comes_back_as_it_was(row: EvaluationRow) -> None:
    assert decode_row(stored(encode_row(row)), where=WHERE) == row


@given(
    st.builds(
        LogLine,
        time=st.text(),
        worker=st.text(),
        rank=STEPS | st.none(),
        generation=STEPS,
        stream=st.sampled_from(("stdout", "stderr")),
        line=st.text(),
    )
)
def test_a_line_comes_back_as_it_was(line: LogLine) -> None:
    assert decode_line(stored(encode_line(line)), where=WHERE) == line


def test_the_json_of_a_row_is_flat() -> None:
    row = MetricsRow(step=Step(3), time="t", seconds=1.5, loss=None, samples_per_s=16.0, metrics={"accuracy": 0.5})
    assert encode_row(row) == {"step": 3, "time": "t", "seconds": 1.5, "loss": None, "samples_per_s": 16.0, "accuracy": 0.5}
    evaluation = EvaluationRow(step=Step(3), time="t", values={"eval_loss": 0.5})
    assert encode_row(evaluation) == {"step": 3, "time": "t", "eval_loss": 0.5}
    line = LogLine(time="t", worker=WorkerId("w0"), rank=None, generation=1, stream="stdout", line="hello")
    for document in (encode_row(row), encode_row(evaluation), encode_line(line)):
        assert list(document) == sorted(document), "as they are read from the store"


def test_what_is_no_figure_is_damage() -> None:
    with pytest.raises(StoreDamaged) as caught:
        decode_row({"step": 3, "time": "t", "seconds": 1.5, "loss": 1.0, "samples_per_s": None, "accuracy": "good"}, where=WHERE)
    assert caught.value.where.startswith(WHERE)
    assert (caught.value.given, caught.value.expected) == ("str", "float | null")
