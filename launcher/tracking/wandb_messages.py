"""What a job and its W&B process say to each other: JSON lines, one message each."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder, Encoder


class Start(Struct, frozen=True, kw_only=True, tag_field="kind", tag="start"):
    """The W&B run to begin, or to go on with. Always the first message."""

    run_id: str
    name: str
    project: str
    entity: str | None
    mode: str
    """auto, online or offline."""
    folder: str
    """For W&B's own files."""
    config: dict[str, object]


class Metrics(Struct, frozen=True, kw_only=True, tag_field="kind", tag="metrics"):
    step: int
    values: dict[str, int | float]
    """Finite."""


class Finish(Struct, frozen=True, kw_only=True, tag_field="kind", tag="finish"):
    """The last message. Input that ends without it means that the job's controller died."""

    exit_code: int


class Answer(Struct, frozen=True, kw_only=True):
    """From the W&B process."""

    state: str
    """started, failed or finished."""
    message: str = ""
    mode: str | UnsetType = UNSET
    """Of what has started: online or offline."""
    folder: str | UnsetType = UNSET
    url: str | UnsetType = UNSET


_encoder = Encoder()
_messages: Decoder[Start | Metrics | Finish] = Decoder(Start | Metrics | Finish)
_answers = Decoder(Answer)


def to_line(message: Start | Metrics | Finish | Answer) -> str:
    """The message as JSON on a line of its own."""
    return _encoder.encode(message).decode() + "\n"


def read_message(line: str) -> Start | Metrics | Finish:
    """Raises msgspec.DecodeError for a line that is none."""
    return _messages.decode(line)


def read_answer(line: str) -> Answer:
    """Raises msgspec.DecodeError for a line that is none."""
    return _answers.decode(line)
