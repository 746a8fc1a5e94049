"""Moving the training state from ranks that hold it (donors) to ranks that do not (receivers), at the start of a generation.

Every donor sends its own share of the pieces (pieces.py) to every receiver. First comes a preface from each donor; the first donor's
announces the header, which follows it, with how the tensors are laid out. Then the pieces, a few in transit at a time, and at the end
a digest of each (piece_digest.py), computed by both sides, on a thread of its own, while the next pieces are in transit.

Where this ends: a damaged piece is found, not repaired; and a donor returns when its bytes are sent, not when they have arrived, so
only a receiver knows that it holds the state. Tensors on a GPU go through pinned memory with Gloo and directly with NCCL; neither has been
tried with GPUs yet.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from launcher.core.types import JsonObject
from launcher.training.comm.collective import Collective, Work
from launcher.training.state.document import StateDocument
from launcher.training.state.piece_digest import DIGEST_BYTES, digest
from launcher.training.state.pieces import StatePiece, TensorLayout, arrival, cut, shares
from launcher.training.state.state_bytes import PieceBytes, StateBytes, layouts_of, without_gaps
from launcher.training.state.train_state import TrainState

UNDER_WAY = 4
"""Pieces of one donor that are in transit at a time. Measured with Gloo between two processes: 1 halves the pace, more than 4 gain nothing."""
_PREFACE = struct.Struct("<Q32s32s32s")
"""Bytes of the header (0 but from the first donor), its SHA-256, the layouts' SHA-256, and the SHA-256 of these three."""


@dataclass(frozen=True)
class StateMove:
    """Ranks of the new generation; no rank is in both."""

    donors: tuple[int, ...]
    """Hold the same state, bit for bit."""
    receivers: tuple[int, ...]


@dataclass(frozen=True)
class StateHeader:
    """What goes with the tensors."""

    document: StateDocument
    records: JsonObject
    """What the ranks keep of the steps done; not looked into here."""


class StateDamaged(Exception):
    """What a donor sent is not what arrived, or not what the other donors hold: the state was not taken."""

    def __init__(self, donor: int, piece: int | None, detail: str) -> None:
        """`donor`: its rank; `piece`: its index in the cut, None where it is not about a piece."""
        super().__init__(donor, piece, detail)
        self.donor = donor
        self.piece = piece
        self.detail = detail

    def __str__(self) -> str:
        what = "the state" if self.piece is None else f"piece {self.piece} of the state"
        return f"{what} from rank {self.donor} is damaged: {self.detail}"


def share_state(
    collective: Collective, move: StateMove, state: TrainState, header: StateHeader, *, device: str, holds_own: bool
) -> StateHeader:
    """Called by every rank of the generation at the same point. A receiver loads the state, and gets the first donor's header.

    header: this rank's own; only the first donor's is sent, and who is no receiver gets its own back.
    device: where a receiver's model is.
    holds_own: this receiver's own state is worth keeping until the donors' has arrived and was verified. Whatever is raised before
    that leaves it as it is. A receiver that has none gets it in place, and after an error holds nothing of use.

    Raises CollectiveBroken when a peer is lost, and StateDamaged on the receiver that noticed: leave the generation then, since the
    others know nothing of it.
    """
    if not move.receivers:
        return header
    if collective.rank in move.donors:
        _give(collective, move, state, header)
        return header
    if collective.rank in move.receivers:
        return _Receiver(collective, move, state, device, holds_own).take()
    return header


def _give(collective: Collective, move: StateMove, state: TrainState, header: StateHeader) -> None:
    tensors = state.tensors()
    layouts = layouts_of(tensors)
    me = move.donors.index(collective.rank)
    text = _announcement(header, layouts) if me == 0 else b""
    under_way = [_send_bytes(collective, move, _preface(text, layouts)), _send_bytes(collective, move, text)]
    pieces = cut(layouts)
    memory = StateBytes(without_gaps(tensors, layouts), collective.device)
    window: deque[tuple[PieceBytes, list[Work]]] = deque()

    def finish() -> None:
        piece, works = window.popleft()
        _wait(works)
        memory.release(piece)

    digests: list[Future[bytes]] = []
    with ThreadPoolExecutor(1, "digests") as thread:
        for index in shares(pieces, len(move.donors))[me]:
            piece = memory.of(pieces[index])
            piece.gather()
            window.append((piece, [collective.send(piece.data, receiver) for receiver in move.receivers]))
            digests.append(_digested(thread, index, piece))
            if len(window) >= UNDER_WAY:
                finish()
        while window:
            finish()
        under_way.append(_send_bytes(collective, move, b"".join(own.result() for own in digests)))
    for works in under_way:
        _wait(works)


class _Receiver:
    """One rank that takes the state, once."""

    def __init__(self, collective: Collective, move: StateMove, state: TrainState, device: str, holds_own: bool) -> None:
        self._collective = collective
        self._move = move
        self._state = state
        self._device = device
        self._holds_own = holds_own

    def take(self) -> StateHeader:
        header, layouts = self._header()
        tensors = self._places(layouts)
        self._receive(cut(layouts), tensors)
        self._state.load({layout.name: tensors[layout.same_as or layout.name] for layout in layouts}, header.document)
        return header

    def _header(self) -> tuple[StateHeader, list[TensorLayout]]:
        """What the first donor announces, once all donors announced the same layouts. Raises StateDamaged."""
        first, *others = self._move.donors
        prefaces = [self._receive_preface(donor) for donor in self._move.donors]
        length, expected, layouts_digest = prefaces[0]
        text = self._receive_bytes(first, length)
        if hashlib.sha256(text).digest() != expected:
            raise StateDamaged(first, None, "its header does not have the digest that was announced")
        for donor, (_, _, other) in zip(others, prefaces[1:], strict=True):
            if other != layouts_digest:
                raise StateDamaged(donor, None, f"its tensors have other names, shapes or types than those of rank {first}")
        return _announced(text)

    def _places(self, layouts: list[TensorLayout]) -> dict[str, Tensor]:
        """Where each tensor goes: the state's own memory, or such as was prepared for it, or new."""
        present = {} if self._holds_own else {**self._state.prepared, **self._state.tensors()}
        places = {}
        for layout in layouts:
            if layout.same_as is not None:
                continue
            dtype: torch.dtype = getattr(torch, layout.dtype)
            device = torch.device(self._device if layout.on_device else "cpu")
            own = present.get(layout.name)
            if own is None or (own.shape, own.stride(), own.dtype, own.device.type) != (layout.shape, layout.strides, dtype, device.type):
                own = torch.empty_strided(layout.shape, layout.strides, dtype=dtype, device=device)
            places[layout.name] = own
        return places

    def _receive(self, pieces: tuple[StatePiece, ...], tensors: Mapping[str, Tensor]) -> None:
        """Fill the tensors, then compare the digests. Raises StateDamaged."""
        donors = self._move.donors
        memory = StateBytes(tensors, self._collective.device)
        window: deque[tuple[int, int, PieceBytes, Work]] = deque()
        digests: list[list[tuple[int, Future[bytes]]]] = [[] for _ in donors]

        def finish() -> None:
            donor, index, piece, work = window.popleft()
            work.wait()
            digests[donor].append((index, _digested(threads, index, piece)))
            piece.scatter()
            memory.release(piece)

        with ThreadPoolExecutor(len(donors), "digests") as threads:
            for donor, index in arrival(shares(pieces, len(donors))):
                piece = memory.of(pieces[index])
                window.append((donor, index, piece, self._collective.recv(piece.data, donors[donor])))
                if len(window) >= UNDER_WAY * len(donors):
                    finish()
            while window:
                finish()
        for donor, pairs in zip(donors, digests, strict=True):
            self._compare(donor, pieces, pairs)

    def _compare(self, donor: int, pieces: tuple[StatePiece, ...], digests: list[tuple[int, Future[bytes]]]) -> None:
        """A donor's digests of the pieces it sent, in their order, with our own."""
        sent_with = self._receive_bytes(donor, len(digests) * DIGEST_BYTES)
        for turn, (index, own) in enumerate(digests):
            if sent_with[turn * DIGEST_BYTES :][:DIGEST_BYTES] != own.result():
                raise StateDamaged(donor, index, f"{pieces[index].size_bytes} bytes with another digest than they were sent with")

    def _receive_preface(self, donor: int) -> tuple[int, bytes, bytes]:
        raw = self._receive_bytes(donor, _PREFACE.size)
        length, header, layouts, check = _PREFACE.unpack(raw)
        if hashlib.sha256(raw[:-DIGEST_BYTES]).digest() != check:
            raise StateDamaged(donor, None, "its preface does not have the digest that it names")
        return length, header, layouts

    def _receive_bytes(self, donor: int, length: int) -> bytes:
        data = torch.empty(length, dtype=torch.uint8, device=self._collective.device)
        if length:
            self._collective.recv(data, donor).wait()
        return data.cpu().numpy().tobytes()


def _announcement(header: StateHeader, layouts: list[TensorLayout]) -> bytes:
    document = header.document.to_json()
    # json, not msgspec: the state may hold infinities, for which msgspec writes null
    return json.dumps({"document": document, "records": header.records, "tensors": msgspec.to_builtins(layouts)}).encode()


def _announced(text: bytes) -> tuple[StateHeader, list[TensorLayout]]:
    """What `_announcement` was made of."""
    content: Any = json.loads(text)
    header = StateHeader(StateDocument.from_json(content["document"]), content["records"])
    return header, msgspec.convert(content["tensors"], list[TensorLayout])


def _preface(announcement: bytes, layouts: list[TensorLayout]) -> bytes:
    parts = (len(announcement), hashlib.sha256(announcement).digest(), hashlib.sha256(msgspec.json.encode(layouts)).digest())
    preface = struct.pack("<Q32s32s", *parts)
    return preface + hashlib.sha256(preface).digest()


def _digested(threads: ThreadPoolExecutor, index: int, piece: PieceBytes) -> Future[bytes]:
    """A piece's digest, in the background; waited for where the piece's memory is about to hold another one."""
    digested = threads.submit(digest, index, piece.data)
    if piece.staging is not None:
        digested.result()
    return digested


def _send_bytes(collective: Collective, move: StateMove, data: bytes) -> list[Work]:
    if not data:
        return []
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(collective.device)
    return [collective.send(tensor, receiver) for receiver in move.receivers]


def _wait(works: list[Work]) -> None:
    for work in works:
        work.wait()
