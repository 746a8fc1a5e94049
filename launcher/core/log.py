"""What the processes that run a job say of themselves: one line for each record, on stderr, as key=value pairs (logfmt).

    time=2026-01-31T12:00:00.000Z level=warning role=worker run=mlp-abcdef term=2 generation=5 rank=0 message="the controller is away"

`setup` is called once, where a process begins; `bind` says what later records are about. What a job's own code prints is not touched.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

from launcher.core.clock import timestamp

Fact = str | int | float | bool
_PLAIN = re.compile(r"[\w.:/+@-]+", re.ASCII)
_logger = logging.getLogger("launcher")


class Context:
    """Facts that go with every record, e.g. run, term, generation, rank. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: dict[str, Fact] = {}

    def update(self, **facts: Fact | None) -> None:
        """Set these; None takes one away. A record that is written meanwhile has all of the old ones or all of the new ones."""
        with self._lock:
            merged: dict[str, Fact | None] = {**self._facts, **facts}
            self._facts = {name: value for name, value in merged.items() if value is not None}

    def clear(self) -> None:
        with self._lock:
            self._facts = {}

    def facts(self) -> dict[str, Fact]:
        return self._facts


context = Context()


class Line(logging.Formatter):
    """One line, whatever is in the message; the traceback of an error is the value of `error`."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Fact] = {
            "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            **context.facts(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={_value(value)}" for name, value in facts.items())


class _Output(logging.Handler):
    """To a stream, or to whatever is stderr at the moment."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it any more; what the process does is worth more than what it says
            self.handleError(record)


def setup(role: str, *, run: str | None = None, stream: TextIO | None = None) -> None:
    """Say from now on what this process logs, as `role` (supervisor, controller, worker) of a run. The context begins anew."""
    context.clear()
    context.update(role=role, run=run)
    handler = _Output(stream)
    handler.setFormatter(Line())
    _logger.handlers = [handler]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def bind(**facts: Fact | None) -> None:
    """What the records that follow are about; None takes a fact away."""
    context.update(**facts)


def info(message: str) -> None:
    _logger.info("%s", message)


def warning(message: str) -> None:
    _logger.warning("%s", message)


def error(message: str) -> None:
    _logger.error("%s", message)


def exception(message: str) -> None:
    """An error with the traceback of what is being handled."""
    _logger.exception("%s", message)


def _value(value: Fact) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
