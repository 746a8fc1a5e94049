"""Messages over real sockets: who is let in, what passes, what the end of a connection looks like."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
from collections.abc import Iterator

import pytest

from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol.messages import (
    Beat,
    Broken,
    Commit,
    Evicted,
    GetKey,
    Hello,
    Stop,
    TermBegan,
    ToController,
    ToWorker,
    Value,
    encode,
)
from launcher.runtime.transport import frames
from launcher.runtime.transport.client import MessageClient, was_evicted
from launcher.runtime.transport.frames import AuthenticationFailed
from launcher.runtime.transport.server import Disconnected, MessageServer, Received

pytestmark = pytest.mark.distributed
SECRET = b"s" * 32
WAIT_S = 20.0
W0, W1 = WorkerId("w0"), WorkerId("w1")
ONE, TWO, THREE = Broken("one"), Broken("two"), Broken("three")
BEAT = Beat(Generation(0), None, None, False, None, False, "building", 0, False, None, None)


class Heard:
    def __init__(self) -> None:
        self.events: queue.Queue[Received | Disconnected] = queue.Queue()

    def next(self, *, beats: bool = False) -> Received | Disconnected:
        while True:
            event = self.events.get(timeout=WAIT_S)
            if beats or isinstance(event, Disconnected) or not isinstance(event.message, Beat):
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
    worker: WorkerId = W0,
    secret: bytes = SECRET,
    received: queue.Queue[ToWorker] | None = None,
    lost: threading.Event | None = None,
) -> MessageClient:
    return MessageClient(
        address,
        secret,
        worker,
        received=(received or queue.Queue()).put,
        beat=lambda: BEAT,
        lost=(lost or threading.Event()).set,
    )


def raw_client(address: tuple[str, int], hello: bytes) -> socket.socket:
    """Somebody who knows the secret and sends `hello` as the body of the first frame."""
    sock = socket.create_connection(address, timeout=WAIT_S)
    theirs, own = frames.receive_exactly(sock, frames.NONCE_BYTES), secrets.token_bytes(frames.NONCE_BYTES)
    sock.sendall(own + frames.proof(SECRET, frames.WORKER, theirs, own))
    frames.receive_exactly(sock, frames.PROOF_BYTES)
    sock.sendall(framed_bytes(hello))
    return sock


def framed_bytes(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_messages_pass_both_ways_in_order(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    received: queue.Queue[ToWorker] = queue.Queue()
    connection = client(server[1], received=received)
    sent: list[ToController] = [Broken(f"{number}" + "x" * number) for number in range(200)]
    for message in sent:
        connection.send(message)
    assert [heard.next() for _ in sent] == [Received(W0, message) for message in sent]
    large = Value(Generation(1), "k", "y" * 3_000_000)
    server[0].send(W0, large)
    assert received.get(timeout=WAIT_S) == large
    connection.close()


def test_many_are_told_in_one_go(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    queues: list[queue.Queue[ToWorker]] = [queue.Queue(), queue.Queue()]
    connections = [client(server[1], worker=worker, received=each) for worker, each in zip((W0, W1), queues, strict=True)]
    for connection in connections:
        connection.send(ONE)
        heard.next()
    stop = Stop()
    server[0].send_all([(W0, stop), (W1, stop), (WorkerId("nobody"), stop), (W1, TermBegan(Term(2)))])
    server[0].send_all([])
    assert [each.get(timeout=WAIT_S) for each in queues] == [Stop(), Stop()]
    assert queues[1].get(timeout=WAIT_S) == TermBegan(Term(2))
    for connection in connections:
        connection.close()


def test_a_heartbeat_comes_without_being_asked(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    connection = client(server[1])
    assert heard.next(beats=True) == heard.next(beats=True) == Received(W0, BEAT)
    connection.close()


def test_a_wrong_secret_is_refused_on_both_sides(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    with pytest.raises((AuthenticationFailed, EOFError, OSError)):
        client(server[1], secret=b"t" * 32)
    connection = client(server[1])
    connection.send(ONE)
    assert heard.next() == Received(W0, ONE), "the refused one left no trace"
    connection.close()


def test_somebody_who_does_not_speak_the_protocol_is_not_heard(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    with socket.create_connection(server[1], timeout=WAIT_S) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 200)
        assert closed(stranger)
    assert heard.events.empty()


@pytest.mark.parametrize("hello", [b"", b"\xff", b"{", b'{"kind":"hello"}', encode(ONE)], ids=repr)
def test_who_knows_the_secret_and_does_not_say_who_it_is_is_reported(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard, hello: bytes
) -> None:
    with raw_client(server[1], hello) as stranger:
        event = heard.next()
        assert isinstance(event, Disconnected)
        assert event.worker is None
        assert event.invalid
        assert closed(stranger)


@pytest.mark.parametrize(
    "frame",
    [framed_bytes(b"\0"), framed_bytes(b'{"kind":"beat"}'), framed_bytes(encode(Stop())), b"\xff\xff\xff\xff"],
    ids=["not JSON", "fields are missing", "of the other direction", "too long"],
)
def test_a_frame_that_is_no_message_closes_its_own_connection_and_no_other(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard, frame: bytes
) -> None:
    received: queue.Queue[ToWorker] = queue.Queue()
    other = client(server[1], worker=W1, received=received)
    other.send(ONE)
    assert heard.next() == Received(W1, ONE)
    with raw_client(server[1], encode(Hello(W0, asks=False))) as broken:
        broken.sendall(framed_bytes(encode(TWO)) + frame + framed_bytes(encode(THREE)))
        assert heard.next() == Received(W0, TWO)
        event = heard.next()
        assert isinstance(event, Disconnected)
        assert (event.worker, bool(event.invalid)) == (W0, True)
        assert closed(broken)
    other.send(THREE)
    assert heard.next() == Received(W1, THREE), "what follows a broken frame is not heard, others are"
    server[0].send(W1, Stop())
    assert received.get(timeout=WAIT_S) == Stop()
    assert was_evicted(server[1], SECRET, W0), "it lost its place, as with any end of a connection"
    other.close()


@pytest.mark.parametrize("frame", [framed_bytes(b"{"), framed_bytes(encode(ONE)), b"\xff\xff\xff\xff"], ids=repr)
def test_a_worker_that_is_sent_what_is_no_message_loses_its_connection(frame: bytes) -> None:
    received: queue.Queue[ToWorker] = queue.Queue()
    lost = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            own = secrets.token_bytes(frames.NONCE_BYTES)
            sock.sendall(own)
            theirs = frames.receive_exactly(sock, frames.NONCE_BYTES)
            frames.receive_exactly(sock, frames.PROOF_BYTES)
            sock.sendall(frames.proof(SECRET, frames.CONTROLLER, theirs, own))
            sock.sendall(framed_bytes(encode(Stop())) + frame + framed_bytes(encode(Evicted())))
            closed(sock)
            sock.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client(listener.getsockname(), received=received, lost=lost)
        assert lost.wait(WAIT_S)
        thread.join(WAIT_S)
    assert received.get(timeout=WAIT_S) == Stop()
    assert received.empty()


def test_what_cannot_be_encoded_ends_the_connection_and_not_only_its_thread(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard
) -> None:
    lost = threading.Event()
    broken: ToController = Broken(object())  # type: ignore[arg-type]
    client(server[1], lost=lost).send(broken)
    assert lost.wait(WAIT_S)
    assert heard.next() == Disconnected(W0)


def test_the_end_of_a_connection_is_heard_once_on_each_side(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    connection = client(server[1])
    connection.send(ONE)
    heard.next()
    connection.close()
    assert heard.next() == Disconnected(W0)


def test_a_worker_that_is_dropped_loses_its_connection_and_is_heard_no_more(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard
) -> None:
    lost = threading.Event()
    dropped, other = client(server[1], lost=lost), client(server[1], worker=W1)
    dropped.send(ONE)
    heard.next()
    server[0].drop(W0)
    assert lost.wait(WAIT_S)
    dropped.send(ONE)
    other.send(ONE)
    assert heard.next() == Received(W1, ONE), "whoever dropped it needs no notice of its loss"
    other.close()


@pytest.mark.parametrize("how", ["dropped", "its connection ended", "dropped before it came"])
def test_a_worker_that_was_evicted_is_told_so_when_it_comes_back(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard, how: str
) -> None:
    if how != "dropped before it came":
        connection = client(server[1])
        connection.send(ONE)
        heard.next()
    if how == "its connection ended":
        connection.close()
        assert heard.next() == Disconnected(W0)
    else:
        server[0].drop(W0)
    received: queue.Queue[ToWorker] = queue.Queue()
    lost = threading.Event()
    back = client(server[1], received=received, lost=lost)
    assert received.get(timeout=WAIT_S) == Evicted()
    assert lost.wait(WAIT_S)
    back.send(ONE)
    assert was_evicted(server[1], SECRET, W0)
    other = client(server[1], worker=W1)
    other.send(ONE)
    assert heard.next() == Received(W1, ONE), "the one that was evicted is not heard"
    other.close()


def test_who_has_its_place_or_finds_nobody_was_not_evicted(server: tuple[MessageServer, tuple[str, int]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()
    assert not was_evicted(nobody, SECRET, W0)
    assert not was_evicted(server[1], b"t" * 32, W0), "another run's controller says nothing of this one's workers"
    assert not was_evicted(server[1], SECRET, W0)


def test_who_asks_takes_no_place(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    connection = client(server[1])
    assert not was_evicted(server[1], SECRET, W0)
    connection.send(ONE)
    assert heard.next() == Received(W0, ONE)
    connection.close()


def test_a_message_to_one_that_was_evicted_is_dropped(server: tuple[MessageServer, tuple[str, int]], heard: Heard) -> None:
    received: queue.Queue[ToWorker] = queue.Queue()
    lost = threading.Event()
    client(server[1], received=received, lost=lost).send(GetKey(Generation(1), "k"))
    heard.next()
    server[0].drop(W0)
    server[0].send(W0, Commit(Generation(1), Step(0), False, False, False, (), ()))
    assert lost.wait(WAIT_S)
    assert received.empty()


def test_a_second_connection_of_a_worker_replaces_the_first_without_a_loss(
    server: tuple[MessageServer, tuple[str, int]], heard: Heard
) -> None:
    first_lost = threading.Event()
    client(server[1], lost=first_lost).send(ONE)
    heard.next()
    second = client(server[1])
    second.send(TWO)
    assert heard.next() == Received(W0, TWO)
    assert first_lost.wait(WAIT_S)
    second.send(THREE)
    assert heard.next() == Received(W0, THREE)
    second.close()
