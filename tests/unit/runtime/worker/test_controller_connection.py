"""Whom a worker obeys, what the next controller hears, and when a worker is an orphan."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol.messages import Broken, Error, Left, SaveFailed, Stop, ToController, ToWorker
from launcher.runtime.worker import controller_connection
from launcher.runtime.worker.controller_connection import Contact, ControllerConnection, Orphanhood

pytestmark = pytest.mark.unit
CONTACT = Contact(("10.0.0.1", 1), b"s")
ERROR = Error("it failed", 1, None, Generation(0), recoverable=True)
FAILED = SaveFailed(Step(5), Generation(1), "disk full")


class FakeClient:
    made: list[FakeClient]

    def __init__(self, address: tuple[str, int], secret: bytes, worker: WorkerId, *, received: Any, beat: Any, lost: Any) -> None:
        if address[0] == "nobody":
            raise ConnectionRefusedError
        self.received, self.lost = received, lost
        self.sent: list[ToController] = []
        self.closed = False
        FakeClient.made.append(self)

    def send(self, message: ToController) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[ToWorker]:
    FakeClient.made = []
    monkeypatch.setattr(controller_connection, "MessageClient", FakeClient)
    return []


@pytest.fixture
def connection(received: list[ToWorker]) -> ControllerConnection:
    def beat() -> ToController:
        raise AssertionError("the fake has no heartbeat")

    return ControllerConnection(WorkerId("w0"), threading.RLock(), received=received.append, beat=beat, progress=lambda: 0, end=pytest.fail)


def attach(connection: ControllerConnection, term: int) -> FakeClient | None:
    """The client in use, where the controller was taken."""
    answer = connection.attach(Term(term), CONTACT, lambda: "answer")
    return FakeClient.made[-1] if answer == "answer" else None


def test_a_higher_term_is_reported_to_and_no_other(connection: ControllerConnection) -> None:
    assert (connection.term, connection.born) == (0, 0)
    first = attach(connection, 2)
    assert first is not None
    assert attach(connection, 2) is None
    assert attach(connection, 1) is None
    second = attach(connection, 5)
    assert second is not None
    assert (connection.term, connection.born) == (5, 2)
    assert (first.closed, second.closed) == (True, False)
    connection.term_began(Term(6))
    assert attach(connection, 6) is None, "the present controller has gone on under this term"


def test_an_earlier_controller_is_not_obeyed_any_more(connection: ControllerConnection, received: list[ToWorker]) -> None:
    first, second = attach(connection, 1), attach(connection, 2)
    assert first is not None
    assert second is not None
    first.received(Stop())
    assert received == []
    second.received(Stop())
    assert received == [Stop()]


def test_a_controller_that_was_overtaken_while_it_connected_is_refused(
    connection: ControllerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FakeClient):
        """While it connects, another controller attaches."""

        def __init__(self, *given: Any, **named: Any) -> None:
            monkeypatch.setattr(controller_connection, "MessageClient", FakeClient)
            assert attach(connection, 3) is not None
            super().__init__(*given, **named)

    monkeypatch.setattr(controller_connection, "MessageClient", Slow)
    assert attach(connection, 2) is None
    fast, slow = FakeClient.made
    assert (connection.term, fast.closed, slow.closed) == (3, False, True)


def test_who_cannot_be_reached_changes_nothing(connection: ControllerConnection) -> None:
    first = attach(connection, 1)
    with pytest.raises(ConnectionRefusedError):
        connection.attach(Term(2), Contact(("nobody", 1), b"s"), lambda: "answer")
    connection.say(Broken("x"))
    assert first is not None
    assert (connection.term, first.closed, first.sent) == (1, False, [Broken("x")])


def test_what_lasts_is_heard_by_every_controller_and_the_rest_by_the_present_one(connection: ControllerConnection) -> None:
    connection.say(ERROR)
    connection.say(Broken("nobody hears it"))
    first = attach(connection, 1)
    connection.say(FAILED)
    connection.say(Left(Generation(1), None))
    second = attach(connection, 2)
    assert first is not None
    assert second is not None
    assert first.sent == [ERROR, FAILED, Left(Generation(1), None)]
    assert second.sent == [ERROR, FAILED]
    connection.forget_save(Step(5), Generation(1))
    third = attach(connection, 3)
    assert third is not None
    assert third.sent == [ERROR]


def test_nobody_waits_where_there_is_a_controller(connection: ControllerConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = attach(connection, 1), attach(connection, 2)
    assert first is not None
    assert second is not None
    first.lost()
    connection.wait()  # it was the end of a connection that is not in use
    second.lost()
    waiting = threading.Thread(target=connection.wait, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    attach(connection, 3)
    waiting.join(10)
    assert not waiting.is_alive()


def test_only_the_controller_that_was_lost_is_asked_about_an_eviction(
    connection: ControllerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, int], bytes, WorkerId]] = []

    def evicted(*given: Any) -> bool:
        asked.append(given)
        return True

    monkeypatch.setattr(controller_connection, "was_evicted", evicted)
    assert not connection._was_evicted()
    client = attach(connection, 1)
    assert client is not None
    assert not connection._was_evicted()
    assert asked == []
    client.lost()
    assert connection._was_evicted()
    assert asked == [(CONTACT.address, CONTACT.secret, "w0")]


def test_an_eviction_by_a_controller_that_was_replaced_meanwhile_is_none(
    connection: ControllerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evicted(*given: Any) -> bool:
        connection.attach(Term(2), Contact(("10.0.0.2", 2), b"t"), lambda: "answer")
        return True

    monkeypatch.setattr(controller_connection, "was_evicted", evicted)
    client = attach(connection, 1)
    assert client is not None
    client.lost()
    assert not connection._was_evicted()


def test_an_orphan_has_neither_a_controller_nor_anything_to_do() -> None:
    orphanhood = Orphanhood(100.0)
    assert orphanhood.lasts_s(101.0, connected=False, progress=0) == 0.0
    assert orphanhood.lasts_s(130.0, connected=False, progress=0) == 29.0
    assert orphanhood.lasts_s(131.0, connected=False, progress=1) == 0.0
    assert orphanhood.lasts_s(150.0, connected=True, progress=1) == 0.0
    assert orphanhood.lasts_s(211.0, connected=False, progress=1) == 61.0
