"""What is put into a frame comes out of it, and what is no message is refused with a reason, whatever it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Term
from launcher.runtime.protocol import messages as m
from launcher.runtime.transport import frames
from launcher.runtime.transport.frames import (
    CONTROLLER,
    LARGEST_FRAME,
    WORKER,
    AuthenticationFailed,
    check_proof,
    framed,
    length_of_frame,
    proof,
    read_frame,
)
from tests.support.messages import DOCUMENTS, kinds, messages

pytestmark = pytest.mark.unit
TO_WORKER, TO_CONTROLLER = kinds(m.ToWorker), kinds(m.ToController)


def body(frame: bytes) -> bytes:
    assert length_of_frame(frame[:4]) == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("kind", TO_WORKER, ids=lambda kind: kind.__name__)
@settings(max_examples=15)  # of each of 35 types
@given(data=st.data())
def test_every_message_to_a_worker_arrives_as_it_was(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    assert m.decode_to_worker(body(framed(message))) == message


@pytest.mark.parametrize("kind", TO_CONTROLLER, ids=lambda kind: kind.__name__)
@settings(max_examples=15)  # of each of 35 types
@given(data=st.data())
def test_every_message_to_the_controller_arrives_as_it_was(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    again = m.decode_to_controller(body(framed(message)))
    assert again == message
    if isinstance(message, m.Saved) and isinstance(again, m.Saved):
        assert again.part == message.part


@pytest.mark.parametrize("union", [TO_WORKER, TO_CONTROLLER], ids=["to a worker", "to the controller"])
def test_no_two_messages_have_one_kind(union: list[type[m.Message]]) -> None:
    assert len({kind.__struct_config__.tag for kind in union}) == len(union)


@pytest.mark.parametrize("decode", [m.decode_to_worker, m.decode_to_controller])
@given(data=st.binary() | DOCUMENTS.map(json.dumps).map(str.encode) | st.text().map(str.encode))
@example(data=b"")
@example(data=b"{}")
@example(data=b'{"kind": 1}')
@example(data=b'{"kind": "no such"}')
@example(data=b'{"kind":"stop","left":' + b"[" * 100_000)
@example(data=b'{"kind":"row","first":1,"generation":1,"row":{"a":' + b"[" * 100_000)
@example(data=b'{"kind":"saved","seconds":1.0,"document":{"tensors":3}}')
def test_what_is_no_message_is_refused_with_a_reason(decode: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(m.MessageInvalid, match=r"."):
        decode(data)


@given(data=st.data())
def test_a_message_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    whole = m.encode(data.draw(st.sampled_from(TO_CONTROLLER).flatmap(messages)))
    with pytest.raises(m.MessageInvalid):
        m.decode_to_controller(whole[: data.draw(st.integers(0, len(whole) - 1))])


WRONG = [("a string", "x"), ("a list", [{}]), ("an object", {"x": []}), ("true", True)]


@pytest.mark.parametrize("kind", [*TO_WORKER, *TO_CONTROLLER], ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_a_field_of_another_type_is_refused(kind: type[m.Message], data: st.DataObject) -> None:
    fields = msgspec.structs.fields(kind)
    if not fields:
        return
    decode: Callable[[bytes], object] = m.decode_to_worker if kind in TO_WORKER else m.decode_to_controller
    document: dict[str, object] = json.loads(m.encode(data.draw(messages(kind))))
    field = data.draw(st.sampled_from(fields))
    wrong = data.draw(st.sampled_from(WRONG).filter(lambda each: not _fits(each[1], field.type)))
    with pytest.raises(m.MessageInvalid):
        decode(json.dumps({**document, field.name: wrong[1]}).encode())
    if field.required:
        with pytest.raises(m.MessageInvalid, match=field.name):
            decode(json.dumps({key: value for key, value in document.items() if key != field.name}).encode())


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(m.MessageInvalid):
        m.decode_to_controller(m.encode(m.Stop()))
    with pytest.raises(m.MessageInvalid):
        m.decode_to_worker(m.encode(m.Released()))


def test_a_frame_that_is_too_long_is_not_read() -> None:
    assert length_of_frame(LARGEST_FRAME.to_bytes(4, "big")) == LARGEST_FRAME
    with pytest.raises(m.MessageInvalid, match=f"{LARGEST_FRAME + 1} bytes"):
        length_of_frame((LARGEST_FRAME + 1).to_bytes(4, "big"))


@settings(max_examples=15)
@given(st.lists(st.sampled_from(TO_CONTROLLER).flatmap(messages), max_size=4), st.booleans())
def test_frames_are_read_one_after_another_up_to_the_end(sent: list[m.Message], torn: bool) -> None:
    data = b"".join(framed(message) for message in sent) + (framed(m.Released())[:-1] if torn else b"")

    async def read() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found = []
        while True:
            try:
                found.append(await read_frame(reader))
            except EOFError:
                return found

    assert [m.decode_to_controller(each) for each in asyncio.run(read())] == sent


def test_a_socket_is_read_until_the_frame_is_whole() -> None:
    class Pieces:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def recv(self, count: int) -> bytes:
            given, self.data = self.data[:1], self.data[1:]
            return given

    sock: Any = Pieces(framed(m.Stop()) + framed(m.TermBegan(Term(3))) + b"\0")
    assert m.decode_to_worker(frames.receive_frame(sock)) == m.Stop()
    assert m.decode_to_worker(frames.receive_frame(sock)) == m.TermBegan(Term(3))
    with pytest.raises(EOFError):
        frames.receive_frame(sock)


def test_a_proof_is_of_one_secret_one_side_and_both_sides_random_bytes() -> None:
    own, theirs = b"a" * 32, b"b" * 32
    good = proof(b"s", WORKER, theirs=own, own=theirs)
    check_proof(good, b"s", WORKER, own=own, theirs=theirs)
    for secret, side, first, second in ((b"t", WORKER, own, theirs), (b"s", CONTROLLER, own, theirs), (b"s", WORKER, theirs, own)):
        with pytest.raises(AuthenticationFailed, match=side.decode()):
            check_proof(good, secret, side, own=first, theirs=second)


def test_a_text_that_utf_8_has_not_arrives_as_its_escape() -> None:
    """os.listdir gives such names, and a user's error may hold one: its words must not end the connection."""
    error = m.Error("cannot read a\udcff.png", ExitCode.JOB_FAILED, None, Generation(0), recoverable=True)
    arrived = m.decode_to_controller(body(framed(error)))
    assert arrived == msgspec.structs.replace(error, reason="cannot read a\\udcff.png")
