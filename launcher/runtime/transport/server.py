"""The controller's end of the connections to its workers. Runs in the controller, on one thread with all connections.

The memory of who is evicted is kept here: whose connection ended, or was dropped, has lost its place for good. When it connects again,
it is told so and let in no more.

The guarantee ends where both processes live and the network between them is cut without closing the connection: then only the
heartbeats that do not come tell of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from launcher.core.types import WorkerId
from launcher.runtime.protocol.messages import Evicted, Hello, Kept, MessageInvalid, ToController, ToWorker, decode_to_controller
from launcher.runtime.transport.frames import CONTROLLER, NONCE_BYTES, PROOF_BYTES, WORKER, check_proof, framed, proof, read_frame

INTRODUCTION_S = 10.0
"""So long somebody who connects may take to prove itself and say who it is."""


@dataclass(frozen=True, slots=True)
class Received:
    worker: WorkerId
    message: ToController


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended, other than by `drop`; the worker is not heard again."""

    worker: WorkerId | None
    """None: it knew the secret, but did not say who it is."""
    invalid: str = ""
    """What was wrong with a frame, where the connection was closed because of it."""


class MessageServer:
    """`received` gets every event, in order, on this object's thread."""

    def __init__(self, secret: bytes, received: Callable[[Received | Disconnected], None], *, host: str) -> None:
        self._secret = secret
        self._received = received
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._writers: dict[WorkerId, asyncio.StreamWriter] = {}
        self._evicted: set[WorkerId] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="message-server", daemon=True)

    def start(self) -> tuple[str, int]:
        """Listen; gives the address that workers are told. Raises OSError when no port is free."""
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, self._host, 0), self._loop).result(timeout=10)
        return self._host, server.sockets[0].getsockname()[1]

    def send(self, worker: WorkerId, message: ToWorker) -> None:
        """Queue a message; a worker that is not connected misses it (its loss is an event of its own)."""
        self._loop.call_soon_threadsafe(self._write, worker, framed(message))

    def send_all(self, messages: Iterable[tuple[WorkerId, ToWorker]]) -> None:
        """As `send`, for many: one object that several get in a row is encoded once, and the thread is woken once."""
        frames: list[tuple[WorkerId, bytes]] = []
        last: ToWorker | None = None
        data = b""
        for worker, message in messages:
            if message is not last:
                last, data = message, framed(message)
            frames.append((worker, data))
        if frames:
            self._loop.call_soon_threadsafe(self._write_all, frames)

    def drop(self, worker: WorkerId) -> None:
        """End a worker's connection: it is not heard again, and when it comes back it is told that it was evicted."""
        self._loop.call_soon_threadsafe(self._close, worker)

    def stop(self) -> None:
        """Send what is queued, close all connections and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    # on the server's thread

    def _write(self, worker: WorkerId, data: bytes) -> None:
        writer = self._writers.get(worker)
        if writer is not None and not writer.is_closing():
            writer.write(data)

    def _write_all(self, frames: list[tuple[WorkerId, bytes]]) -> None:
        for worker, data in frames:
            self._write(worker, data)

    def _close(self, worker: WorkerId) -> None:
        self._evicted.add(worker)
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
        """One connection, from its first byte to its end."""
        worker: WorkerId | None = None
        invalid = ""
        try:
            hello = await asyncio.wait_for(self._introduced(reader, writer), timeout=INTRODUCTION_S)
            if hello.worker in self._evicted or hello.asks:
                writer.write(framed(Evicted() if hello.worker in self._evicted else Kept()))
                await writer.drain()
                return
            worker = hello.worker
            self._take_in(worker, writer)
            while True:
                self._received(Received(worker, decode_to_controller(await read_frame(reader))))
        except MessageInvalid as error:
            invalid = str(error)
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            writer.close()
            if worker is None and invalid:
                self._received(Disconnected(None, invalid))
            elif worker is not None and self._writers.get(worker) is writer:
                del self._writers[worker]
                self._evicted.add(worker)
                self._received(Disconnected(worker, invalid))

    async def _introduced(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
        """Raises AuthenticationFailed, and MessageInvalid for a first message that is no introduction."""
        own = secrets.token_bytes(NONCE_BYTES)
        writer.write(own)
        theirs = await reader.readexactly(NONCE_BYTES)
        check_proof(await reader.readexactly(PROOF_BYTES), self._secret, WORKER, own, theirs)
        writer.write(proof(self._secret, CONTROLLER, theirs, own))
        hello = decode_to_controller(await read_frame(reader))
        if not isinstance(hello, Hello):
            raise MessageInvalid(f"the first message is {type(hello).__name__}, not Hello")
        return hello

    def _take_in(self, worker: WorkerId, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replaced = self._writers.get(worker)
        self._writers[worker] = writer
        if replaced is not None:
            replaced.close()
