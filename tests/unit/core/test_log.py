"""A record is one line with all that is known, whatever its message has in it."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core import log

pytestmark = pytest.mark.unit
PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "]+)(?: |$)')


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger("launcher")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before
    log.context.clear()


def fields(line: str) -> dict[str, str]:
    pairs = PAIR.findall(line)
    assert "".join(f"{name}={value} " for name, value in pairs).rstrip() == line.rstrip("\n"), line
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def lines(stream: io.StringIO) -> list[dict[str, str]]:
    return [fields(line) for line in stream.getvalue().split("\n")[:-1]]


def test_a_record_has_its_time_its_level_and_what_it_is_about() -> None:
    stream = io.StringIO()
    log.setup("worker", run="mlp-abcdef", stream=stream)
    log.bind(term=2, generation=5, rank=0)
    log.warning("the controller is away")
    (record,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    about = {"role": "worker", "run": "mlp-abcdef", "term": "2", "generation": "5", "rank": "0"}
    assert record == {"level": "warning", **about, "message": "the controller is away"}


def test_what_is_not_known_is_not_there() -> None:
    stream = io.StringIO()
    log.setup("supervisor", stream=stream)
    log.bind(term=1)
    log.bind(term=None)
    log.info("begins")
    assert [list(record) for record in lines(stream)] == [["time", "level", "role", "message"]]


def test_an_error_has_its_traceback_on_the_same_line() -> None:
    stream = io.StringIO()
    log.setup("worker", stream=stream)
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("it failed")
    (record,) = lines(stream)
    assert (record["level"], record["message"]) == ("error", "it failed")
    assert record["error"].startswith("Traceback")
    assert record["error"].endswith("ValueError: no such thing")


def test_who_is_set_up_again_says_everything_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.setup("worker", run="one", stream=first)
    log.bind(term=1)
    log.setup("controller", stream=second)
    log.error("100 %s")
    assert first.getvalue() == ""
    assert [(record["role"], "run" in record, "term" in record, record["message"]) for record in lines(second)] == [
        ("controller", False, False, "100 %s")
    ]


@given(st.text(), st.text())
def test_any_message_is_one_line_that_can_be_read_back(message: str, run: str) -> None:
    stream = io.StringIO()
    log.setup("worker", run=run, stream=stream)
    log.info(message)
    (record,) = lines(stream)
    assert (record["message"], record["run"]) == (message, run)


def test_facts_that_change_together_are_never_seen_apart() -> None:
    context, seen = log.Context(), set()
    context.update(term=0, generation=0)
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            facts = context.facts()
            seen.add(facts["term"] == facts["generation"])

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2000):
        context.update(term=number, generation=number)
    ended.set()
    thread.join()
    assert seen <= {True}
    assert context.facts() == {"term": 1999, "generation": 1999}
