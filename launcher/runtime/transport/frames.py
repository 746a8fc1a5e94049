"""What passes over a connection between controller and worker, for both sides of it. Pure, but for the helpers that read from a socket.

First each side proves that it knows the term's secret: it sends 32 random bytes, and HMAC-SHA256 (RFC 2104) over the random bytes of both
sides, so that nobody else on the network is let in. Then come frames: a length of 4 bytes, big-endian, and that many bytes of one message
as JSON (protocol/messages.py). Nothing is encrypted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import struct

from launcher.runtime.protocol.messages import Message, MessageInvalid, encode

LARGEST_FRAME = 256 * 1024 * 1024
NONCE_BYTES = 32
PROOF_BYTES = hashlib.sha256().digest_size
CONTROLLER, WORKER = b"controller", b"worker"
"""The sides; in the proof, so that neither side's can be sent back as the other's."""
_LENGTH = struct.Struct("!I")


class AuthenticationFailed(ConnectionError):
    """The other side does not know the secret."""


def proof(secret: bytes, side: bytes, theirs: bytes, own: bytes) -> bytes:
    """That `side` knows the secret; `theirs` and `own` are the random bytes of the other side and of this one."""
    return hmac.new(secret, side + theirs + own, hashlib.sha256).digest()


def check_proof(given: bytes, secret: bytes, side: bytes, own: bytes, theirs: bytes) -> None:
    """See that the other side, which is `side`, knows the secret. Raises AuthenticationFailed."""
    if not hmac.compare_digest(given, proof(secret, side, own, theirs)):
        raise AuthenticationFailed(f"the {side.decode()} at the other end does not know the secret")


def framed(message: Message) -> bytes:
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


def length_of_frame(head: bytes) -> int:
    """Bytes of the message that follow the first four. Raises MessageInvalid for more than LARGEST_FRAME."""
    length: int = _LENGTH.unpack(head)[0]
    if length > LARGEST_FRAME:
        raise MessageInvalid(f"a frame of {length} bytes, and {LARGEST_FRAME} are the most")
    return length


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message, not decoded. Raises EOFError at the end, OSError, MessageInvalid."""
    return await reader.readexactly(length_of_frame(await reader.readexactly(_LENGTH.size)))


def receive_frame(sock: socket.socket) -> bytes:
    """As `read_frame`, from a blocking socket."""
    return receive_exactly(sock, length_of_frame(receive_exactly(sock, _LENGTH.size)))


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Raises EOFError when the connection ends before."""
    received = bytearray()
    while len(received) < count:
        part = sock.recv(count - len(received))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
