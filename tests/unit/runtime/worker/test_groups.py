"""Process groups are formed beside the present one, discarded at any moment, and closed when nobody can be inside."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from launcher.core.types import Generation
from launcher.runtime.protocol.messages import GetKey, SetKey, Value
from launcher.runtime.protocol.participant import Assignment
from launcher.runtime.worker.groups import Groups
from launcher.training.comm.transport import CollectiveBroken

pytestmark = pytest.mark.unit
WAIT_S = 10.0
ONE, TWO = Generation(1), Generation(2)


class FakeCollective:
    """Formed as soon as somebody has set the key "go", unless it is left before."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.connecting, self.left, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.may_connect = threading.Event()
        self.fails = ""
        self.waited_s, self.waiting = 0.25, True

    def connect(self, store: Any) -> None:
        store.set("listener", b"here")
        self.connecting.set()
        assert self.may_connect.wait(WAIT_S)
        if self.fails:
            raise CollectiveBroken(self.fails)

    def leave(self) -> None:
        self.left.set()

    def close(self) -> None:
        self.closed.set()


class Harness:
    def __init__(self) -> None:
        self.made: dict[Generation, FakeCollective] = {}
        self.said: queue.Queue[SetKey | GetKey] = queue.Queue()
        self.told: queue.Queue[tuple[str, Generation]] = queue.Queue()
        make: Callable[[Assignment], Any] = self._make
        self.groups = Groups(
            make,
            self.said.put,
            connected=lambda generation, seconds: self.told.put(("connected", generation)),
            could_not_connect=lambda generation, detail: self.told.put((detail, generation)),
        )

    def _make(self, assignment: Assignment) -> FakeCollective:
        self.made[assignment.generation] = FakeCollective(assignment.generation)
        return self.made[assignment.generation]

    def begin(self, generation: Generation) -> FakeCollective:
        self.groups.connect(Assignment(generation, 0, 2))
        collective = self.made[generation]
        assert collective.connecting.wait(WAIT_S)
        return collective

    def form(self, generation: Generation) -> FakeCollective:
        collective = self.begin(generation)
        collective.may_connect.set()
        assert self.told.get(timeout=WAIT_S) == ("connected", generation)
        return collective

    def enter(self, generation: Generation) -> FakeCollective:
        collective = self.form(generation)
        assert id(self.groups.enter(generation)) == id(collective)
        return collective


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_the_next_group_is_formed_while_the_present_one_is_in_use(harness: Harness) -> None:
    assert (harness.groups.waited_s, harness.groups.waiting) == (0.0, False)
    first = harness.enter(ONE)
    second = harness.form(TWO)
    assert not first.left.is_set()
    assert (harness.groups.waited_s, harness.groups.waiting) == (0.25, True)
    harness.groups.enter(TWO)
    assert not first.closed.is_set(), "other ranks may be inside"
    harness.groups.close_retired()
    assert first.closed.wait(WAIT_S)
    assert not second.closed.is_set()


def test_the_one_that_is_in_use_is_cut_and_no_other(harness: Harness) -> None:
    harness.groups.cut()
    first, second = harness.enter(ONE), harness.form(TWO)
    harness.groups.cut()
    assert first.left.is_set()
    assert not second.left.is_set()


def test_a_group_that_cannot_be_formed_says_why(harness: Harness) -> None:
    collective = harness.begin(ONE)
    collective.fails = "no route"
    collective.may_connect.set()
    assert harness.told.get(timeout=WAIT_S) == ("no route", ONE)


def test_a_group_that_is_discarded_while_it_is_formed_says_nothing_and_is_closed_where_it_was_formed_nevertheless(harness: Harness) -> None:
    failing, forming = harness.begin(ONE), harness.begin(TWO)
    failing.fails = "it was left"
    for generation in (ONE, TWO):
        harness.groups.discard(generation)
        assert harness.made[generation].left.is_set()
        harness.made[generation].may_connect.set()
    assert forming.closed.wait(WAIT_S)
    harness.form(Generation(3))
    assert harness.told.empty()


def test_a_group_that_is_discarded_when_it_is_formed_is_closed(harness: Harness) -> None:
    collective = harness.form(ONE)
    harness.groups.discard(ONE)
    assert collective.left.is_set()
    assert collective.closed.wait(WAIT_S)
    harness.groups.discard(ONE)


def test_keys_are_said_again_for_what_is_not_entered(harness: Harness) -> None:
    harness.enter(ONE)
    harness.begin(TWO)
    said = [harness.said.get(timeout=WAIT_S) for _ in range(2)]
    assert said == [SetKey(ONE, "listener", "aGVyZQ=="), SetKey(TWO, "listener", "aGVyZQ==")]
    harness.groups.repeat()
    assert harness.said.get(timeout=WAIT_S) == said[1]
    assert harness.said.empty()
    harness.made[TWO].may_connect.set()


def test_a_value_reaches_the_group_that_looks_for_it(harness: Harness) -> None:
    found: queue.Queue[bytes] = queue.Queue()

    class Looks(FakeCollective):
        def connect(self, store: Any) -> None:
            self.connecting.set()
            found.put(store.get("k", WAIT_S))

    harness._make = lambda assignment: harness.made.setdefault(ONE, Looks(ONE))  # type: ignore[method-assign]
    harness.groups._make = harness._make  # type: ignore[assignment]
    harness.begin(ONE)
    assert harness.said.get(timeout=WAIT_S) == GetKey(ONE, "k")
    harness.groups.value(Value(TWO, "k", "bm8="))
    harness.groups.value(Value(ONE, "k", "eWVz"))
    assert found.get(timeout=WAIT_S) == b"yes"
    assert harness.told.get(timeout=WAIT_S) == ("connected", ONE)
