"""The link over real sockets: who is let in, what passes, what its end looks like."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from launcher.core.types import JsonObject, WorkerId
from launcher.runtime.transport.server import AuthenticationFailed, MessageClient, MessageServer, Received, was_given_up

pytestmark = pytest.mark.distributed
SECRET = b"s" * 32
WAIT_S = 20.0


class Heard:
    def __init__(self) -> None:
        self.events: queue.Queue[Received] = queue.Queue()

    def next(self, *, beats: bool = False) -> Received:
        while True:
            event = self.events.get(timeout=WAIT_S)
            if beats or event.message is None or event.message["kind"] != "beat":
                return event


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def server(heard: Heard) -> Iterator[tuple[MessageServer, tuple[str, int]]]:
    server = MessageServer(SECRET, heard.events.put, host="127.0.0.1")
    address = server.start()
    yield server, address
    server.stop()


def client(
    address: tuple[str, int],
    *,
    worker: str = "w0",
    secret: bytes = SECRET,
    received: queue.Queue[JsonObject] | None = None,
    lost: threading.Event | None = None,
) -> MessageClient:
    return MessageClient(
        address,
        secret,
        WorkerId(worker),
        heard=(received or queue.Queue()).put,
        beat=lambda: {"kind": "beat"},
        lost=(lost or threading.Event()).set,
    )


def test_messages_pass_both_ways_in_order(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    received: queue.Queue[JsonObject] = queue.Queue()
    link = client(server[1], received=received)
    for number in range(200):
        link.send({"kind": "row", "number": number, "text": "x" * number})
    assert [heard.next().message["number"] for _ in range(200)] == list(range(200))  # type: ignore[index]
    server[0].send(WorkerId("w0"), {"kind": "stop", "large": "y" * 3_000_000})
    assert len(str(received.get(timeout=WAIT_S)["large"])) == 3_000_000
    link.close()


def test_a_heartbeat_comes_without_being_asked(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    link = client(server[1])
    assert heard.next(beats=True).message == {"kind": "beat"}
    assert heard.next(beats=True).message == {"kind": "beat"}
    link.close()


def test_a_wrong_secret_is_refused_on_both_sides(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    with pytest.raises((AuthenticationFailed, EOFError, OSError)):
        client(server[1], secret=b"t" * 32)
    link = client(server[1])
    link.send({"kind": "row"})
    assert heard.next().message == {"kind": "row"}, "the refused one left no trace"
    link.close()


def test_somebody_who_does_not_speak_the_protocol_is_not_heard(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    with socket.create_connection(server[1], timeout=WAIT_S) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 200)
        while stranger.recv(4096):
            pass
    assert heard.events.empty()


def test_the_end_of_a_connection_is_heard_once_on_each_side(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    link = client(server[1])
    link.send({"kind": "row"})
    heard.next()
    link.close()
    assert heard.next() == Received(WorkerId("w0"), None)


def test_a_worker_that_is_dropped_loses_its_connection_and_is_heard_no_more(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard
) -> None:
    lost = threading.Event()
    dropped, other = client(server[1], lost=lost), client(server[1], worker="w1")
    dropped.send({"kind": "row"})
    heard.next()
    server[0].drop(WorkerId("w0"))
    assert lost.wait(WAIT_S)
    dropped.send({"kind": "row"})
    other.send({"kind": "row"})
    assert heard.next() == Received(WorkerId("w1"), {"kind": "row"}), "whoever dropped it needs no notice of its loss"
    other.close()


@pytest.mark.parametrize("how", ["dropped", "its connection ended", "dropped before it came"])
def test_a_worker_that_was_given_up_is_told_so_when_it_comes_back(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard, how: str
) -> None:
    if how != "dropped before it came":
        link = client(server[1])
        link.send({"kind": "row"})
        heard.next()
    if how == "its connection ended":
        link.close()
        assert heard.next() == Received(WorkerId("w0"), None)
    else:
        server[0].drop(WorkerId("w0"))
    received: queue.Queue[JsonObject] = queue.Queue()
    lost = threading.Event()
    back = client(server[1], received=received, lost=lost)
    assert received.get(timeout=WAIT_S) == {"kind": "evicted"}
    assert lost.wait(WAIT_S)
    back.send({"kind": "row"})
    assert was_given_up(server[1], SECRET, WorkerId("w0"))
    other = client(server[1], worker="w1")
    other.send({"kind": "row"})
    assert heard.next() == Received(WorkerId("w1"), {"kind": "row"}), "the one that was given up is not heard"
    other.close()


def test_who_has_its_place_or_finds_nobody_was_not_given_up(server: tuple[MessageServer, tuple[str, int]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    assert not was_given_up(nobody, SECRET, WorkerId("w0"))
    assert not was_given_up(server[1], b"t" * 32, WorkerId("w0")), "another run's controller says nothing of this one's workers"
    assert not was_given_up(server[1], SECRET, WorkerId("w0"))


def test_a_message_to_one_that_was_given_up_is_dropped(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    received: queue.Queue[JsonObject] = queue.Queue()
    lost = threading.Event()
    client(server[1], received=received, lost=lost).send({"kind": "row"})
    heard.next()
    server[0].drop(WorkerId("w0"))
    server[0].send(WorkerId("w0"), {"kind": "commit"})
    assert lost.wait(WAIT_S)
    assert received.empty()


def test_a_second_connection_of_a_worker_replaces_the_first_without_a_loss(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard
) -> None:
    first_lost = threading.Event()
    client(server[1], lost=first_lost).send({"kind": "one"})
    heard.next()
    second = client(server[1])
    second.send({"kind": "two"})
    assert heard.next().message == {"kind": "two"}
    assert first_lost.wait(WAIT_S)
    second.send({"kind": "three"})
    assert heard.next().message == {"kind": "three"}
    second.close()
