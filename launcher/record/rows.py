"""Lines of the streams `metrics` and `logs`, and their JSON: flat objects."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, to_builtins

from launcher.core.types import Json, JsonObject, Step, WorkerId
from launcher.record.parsing import parsed


class MetricsRow(Struct, frozen=True, kw_only=True):
    """Means over a window of training steps. Null: not finite."""

    step: Step
    """The last one of the window."""
    time: str
    """When that step was done, in ISO 8601; "" where the clock was not read."""
    seconds: float
    """Spent in the steps of the window."""
    loss: float | None
    samples_per_s: float | None
    grad_norm: float | UnsetType | None = UNSET
    """Where gradients are clipped."""
    metrics: dict[str, float | None] = {}
    """Of the task, by name: keys of their own beside the others in JSON."""


class EvaluationRow(Struct, frozen=True, kw_only=True):
    """An evaluation on the held-out split after a step."""

    step: Step
    time: str
    """When the controller heard of it, in ISO 8601."""
    values: dict[str, float | None]
    """By their keys in JSON: eval_loss, and eval_ before the name of each metric of the task. Null: not finite."""


class LogLine(Struct, frozen=True, kw_only=True):
    """A line that a worker printed."""

    time: str
    worker: WorkerId
    rank: int | None
    """In the generation that was in force when the controller read the line; null for a worker outside of it."""
    generation: int
    stream: str
    """stdout or stderr."""
    line: str


RESERVED = tuple(name for name in MetricsRow.__struct_fields__ if name != "metrics")
"""Keys of a training row that are ours; a task's metric of the same name does not replace them."""
_EVALUATION = ("step", "time")


def encode_row(row: MetricsRow | EvaluationRow) -> JsonObject:
    """The row as the store has it: one flat object, its keys sorted."""
    document: dict[str, Json] = to_builtins(row)
    figures = document.pop("metrics" if isinstance(row, MetricsRow) else "values")
    assert isinstance(figures, dict)
    return dict(sorted({**document, **figures}.items()))


def decode_row(document: JsonObject, *, where: str) -> MetricsRow | EvaluationRow:
    """An entry of the stream `metrics`; a row without `seconds` is an evaluation.

    `where` names its segment, for the error. Raises StoreDamaged where a key is missing or a value has the wrong type.
    """
    ours = RESERVED if "seconds" in document else _EVALUATION
    stamp = {name: value for name, value in document.items() if name in ours}
    figures = {name: value for name, value in document.items() if name not in ours}
    if "seconds" in document:
        return parsed({**stamp, "metrics": figures}, MetricsRow, where=where)
    return parsed({**stamp, "values": figures}, EvaluationRow, where=where)


def encode_line(line: LogLine) -> JsonObject:
    """The line as the store has it, its keys sorted."""
    document: JsonObject = to_builtins(line, order="sorted")
    return document


def decode_line(document: JsonObject, *, where: str) -> LogLine:
    """An entry of the stream `logs`; `where` names its segment, for the error. Raises StoreDamaged where it is not one."""
    return parsed(document, LogLine, where=where)
