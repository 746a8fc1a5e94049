"""A worker's end of the connection to its controller. Runs in the worker: one thread sends, one receives."""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable

from launcher.core import log
from launcher.core.types import WorkerId
from launcher.runtime.protocol.messages import Evicted, Hello, MessageInvalid, ToController, ToWorker, decode_to_worker
from launcher.runtime.transport.frames import (
    CONTROLLER,
    NONCE_BYTES,
    PROOF_BYTES,
    WORKER,
    check_proof,
    framed,
    proof,
    receive_exactly,
    receive_frame,
)

BEAT_S = 0.5
CONNECT_S = 10.0
ANSWER_S = 5.0
UNACKNOWLEDGED_S = 30
"""A machine that is gone without a word is noticed by what it does not acknowledge for so long."""


class MessageClient:
    """Messages go out on a thread of their own, with a heartbeat every BEAT_S between them; `received` is called on another.

    `beat` gives the heartbeat, on the thread that sends. `lost` is called once when the connection ends other than by `close`, also when
    a frame was no message.
    """

    def __init__(
        self,
        address: tuple[str, int],
        secret: bytes,
        worker: WorkerId,
        *,
        received: Callable[[ToWorker], None],
        beat: Callable[[], ToController],
        lost: Callable[[], None],
    ) -> None:
        """Connect. Raises OSError, EOFError or AuthenticationFailed."""
        self._received, self._beat, self._lost = received, beat, lost
        self._outgoing: queue.SimpleQueue[ToController | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._socket = _introduce(address, secret, Hello(worker, asks=False))
        for target in (self._send_all, self._receive_all):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()

    def send(self, message: ToController) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        """Send what is queued, then end the connection."""
        self._ended.set()
        self._outgoing.put(None)

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
                self._socket.sendall(framed(message))
        except OSError:
            self._end()
        except Exception:  # noqa: BLE001 - a worker that says nothing any more must not pass for one that does
            log.exception("a message cannot be sent: the connection to the controller ends")
            self._end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the thread that receives

    def _receive_all(self) -> None:
        try:
            while True:
                self._received(decode_to_worker(receive_frame(self._socket)))
        except (OSError, EOFError):
            self._end()
        except MessageInvalid as error:
            log.error(f"the controller sent what is no message: {error}")
            self._end()
        except Exception:  # noqa: BLE001 - a worker that hears nothing any more must not pass for one that does
            log.exception("a message could not be taken: the connection to the controller ends")
            self._end()
        self._socket.close()

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._outgoing.put(None)
            self._lost()


def was_evicted(address: tuple[str, int], secret: bytes, worker: WorkerId) -> bool:
    """Ask a controller, to which the connection was lost, whether it evicted this worker; False where none answers."""
    try:
        with _introduce(address, secret, Hello(worker, asks=True)) as sock:
            sock.settimeout(ANSWER_S)
            return isinstance(decode_to_worker(receive_frame(sock)), Evicted)
    except (OSError, EOFError, MessageInvalid):
        return False


def _introduce(address: tuple[str, int], secret: bytes, hello: Hello) -> socket.socket:
    """Connect, prove that both sides know the secret, and say who this is. Raises OSError, EOFError or AuthenticationFailed."""
    sock = socket.create_connection(address, timeout=CONNECT_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNACKNOWLEDGED_S)
        theirs = receive_exactly(sock, NONCE_BYTES)
        own = secrets.token_bytes(NONCE_BYTES)
        sock.sendall(own + proof(secret, WORKER, theirs, own))
        check_proof(receive_exactly(sock, PROOF_BYTES), secret, CONTROLLER, own, theirs)
        sock.settimeout(None)
        sock.sendall(framed(hello))
    except BaseException:
        sock.close()
        raise
    return sock
