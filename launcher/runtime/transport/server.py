"""The connection between controller and worker: authenticated by the term's secret, JSON in frames, a heartbeat within.

A frame is a length of 4 bytes, big-endian, and that many bytes of UTF-8 JSON. Before the first frame each side proves
that it knows the secret (HMAC-SHA256 over both sides' 32 random bytes, after RFC 2104), so that nobody else on the
network joins; the content is not encrypted.

The guarantee ends where both processes live and the network in between is cut without closing the connection: then only
the missing heartbeat tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import queue
import secrets
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from launcher.core.types import JsonObject, WorkerId

BEAT_S = 0.5
UNACKNOWLEDGED_S = 30
LARGEST_FRAME = 256 * 1024 * 1024
_LENGTH = struct.Struct("!I")
_NONCE = 32
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class AuthenticationFailed(ConnectionError):
    """The other side does not know the secret."""


def _frame(message: JsonObject) -> bytes:
    body = _ENCODER.encode(message).encode()
    return _LENGTH.pack(len(body)) + body


def _proof(secret: bytes, who: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(secret, who + first + second, hashlib.sha256).digest()


@dataclass(frozen=True)
class Received:
    """What the controller hears: a message of a worker, or None when its connection is gone."""

    worker: WorkerId
    message: JsonObject | None


class MessageServer:
    """The controller's side: one thread with all connections; events go to `heard`, called on that thread."""

    def __init__(self, secret: bytes, heard: Callable[[Received], None], *, host: str) -> None:
        self._secret = secret
        self._heard = heard
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._writers: dict[WorkerId, asyncio.StreamWriter] = {}
        self._gone: set[WorkerId] = set()
        """Their connection ended, so their place was given up: who comes back is told so."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)

    def start(self) -> tuple[str, int]:
        """Listen; gives the address that workers are told. Raises OSError when no port is free."""
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, self._host, 0), self._loop).result(timeout=10)
        return self._host, server.sockets[0].getsockname()[1]

    def send(self, worker: WorkerId, message: JsonObject) -> None:
        """Hand a message over; a worker that is not connected misses it (its loss is an event of its own)."""
        data = _frame(message)
        self._loop.call_soon_threadsafe(self._write, worker, data)

    def send_all(self, messages: Iterable[tuple[WorkerId, JsonObject]]) -> None:
        """As `send`, for many at once: a message that several get is put into words once, and the link's thread is woken once."""
        frames: list[tuple[WorkerId, bytes]] = []
        last: JsonObject | None = None
        data = b""
        for worker, message in messages:
            if message is not last:
                last, data = message, _frame(message)
            frames.append((worker, data))
        self._loop.call_soon_threadsafe(self._write_all, frames)

    def drop(self, worker: WorkerId) -> None:
        """End a worker's connection; it is not heard again, and told that it was given up when it comes back."""
        self._loop.call_soon_threadsafe(self._close, worker)

    def stop(self) -> None:
        """Send what is queued, close all connections and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _write(self, worker: WorkerId, data: bytes) -> None:
        writer = self._writers.get(worker)
        if writer is not None and not writer.is_closing():
            writer.write(data)

    def _write_all(self, frames: list[tuple[WorkerId, bytes]]) -> None:
        for worker, data in frames:
            self._write(worker, data)

    def _close(self, worker: WorkerId) -> None:
        self._gone.add(worker)
        writer = self._writers.pop(worker, None)
        if writer is not None:
            writer.transport.abort()  # a peer that reads nothing must not keep it open

    async def _shut(self) -> None:
        writers = list(self._writers.values())
        self._writers.clear()
        for writer in writers:
            with contextlib.suppress(OSError, TimeoutError):  # the worker is gone, there is nobody to tell
                await asyncio.wait_for(writer.drain(), timeout=1.0)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker: WorkerId | None = None
        try:
            hello = await asyncio.wait_for(self._admit(reader, writer), timeout=10)
            name = WorkerId(str(hello["worker"]))
            if name in self._gone or hello.get("asks"):
                writer.write(_frame({"kind": "evicted" if name in self._gone else "kept"}))
                await writer.drain()
                return
            worker = name
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            replaced = self._writers.get(worker)
            self._writers[worker] = writer
            if replaced is not None:
                replaced.close()
            while True:
                self._heard(Received(worker, await _receive(reader)))
        except (OSError, EOFError, TimeoutError, AuthenticationFailed, ValueError):
            pass
        finally:
            writer.close()
            if worker is not None and self._writers.get(worker) is writer:
                del self._writers[worker]
                self._gone.add(worker)
                self._heard(Received(worker, None))

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> JsonObject:
        mine = secrets.token_bytes(_NONCE)
        writer.write(mine)
        theirs = await reader.readexactly(_NONCE)
        proof = await reader.readexactly(hashlib.sha256().digest_size)
        if not hmac.compare_digest(proof, _proof(self._secret, b"worker", mine, theirs)):
            raise AuthenticationFailed("a connection did not know the secret")
        writer.write(_proof(self._secret, b"controller", theirs, mine))
        return await _receive(reader)


async def _receive(reader: asyncio.StreamReader) -> JsonObject:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > LARGEST_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    message: JsonObject = json.loads(await reader.readexactly(length))
    return message


class MessageClient:
    """The worker's side: messages go out on a thread of their own, with a heartbeat between them; `heard` is called on another.

    `beat` gives what the heartbeat says; `lost` is called once when the connection ends other than by `close`.
    """

    def __init__(
        self,
        address: tuple[str, int],
        secret: bytes,
        worker: WorkerId,
        *,
        heard: Callable[[JsonObject], None],
        beat: Callable[[], JsonObject],
        lost: Callable[[], None],
        asks: bool = False,
    ) -> None:
        """`asks`: only to be told whether this worker was given up."""
        self._heard, self._beat, self._lost = heard, beat, lost
        self._outgoing: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._socket = socket.create_connection(address, timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a machine that is gone without a word is noticed by what it does not acknowledge
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNACKNOWLEDGED_S)
        try:
            self._prove(secret)
            self._socket.settimeout(None)
            self._socket.sendall(_frame({"worker": worker, "asks": asks}))
        except BaseException:
            self._socket.close()
            raise
        for target in (self._send_all, self._receive_all):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()

    def send(self, message: JsonObject) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        """Send what is queued, then end the connection."""
        self._ended.set()
        self._outgoing.put(None)

    def _prove(self, secret: bytes) -> None:
        theirs = _exactly(self._socket, _NONCE)
        mine = secrets.token_bytes(_NONCE)
        self._socket.sendall(mine + _proof(secret, b"worker", theirs, mine))
        if not hmac.compare_digest(_exactly(self._socket, 32), _proof(secret, b"controller", mine, theirs)):
            raise AuthenticationFailed("the controller does not know the secret")

    def _send_all(self) -> None:
        next_beat = time.monotonic()
        try:
            while True:
                try:
                    message = self._outgoing.get(timeout=max(0.0, next_beat - time.monotonic()))
                except queue.Empty:
                    next_beat = time.monotonic() + BEAT_S
                    message = self._beat()
                if message is None:
                    break
                self._socket.sendall(_frame(message))
        except OSError:
            self._end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the thread that receives

    def _receive_all(self) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(_exactly(self._socket, _LENGTH.size))
                message: Any = json.loads(_exactly(self._socket, length))
                self._heard(message)
        except (OSError, EOFError):
            self._end()
        except Exception:  # noqa: BLE001 - a worker that hears nothing any more must not pass for one that does
            traceback.print_exc()
            self._end()
        self._socket.close()

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._outgoing.put(None)
            self._lost()


def was_given_up(address: tuple[str, int], secret: bytes, worker: WorkerId) -> bool:
    """Ask a controller that this worker lost its connection to; False where none answers."""
    answers: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
    try:
        client = MessageClient(
            address, secret, worker, heard=answers.put, beat=lambda: {"kind": "asks"}, lost=lambda: answers.put(None), asks=True
        )
    except (OSError, EOFError):
        return False
    try:
        answer = answers.get(timeout=5)
    except queue.Empty:
        answer = None
    client.close()
    return answer is not None and answer["kind"] == "evicted"


def _exactly(sock: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = sock.recv(count - len(received))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
