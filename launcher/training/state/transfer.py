"""Moving the training state from ranks that hold it (donors) to ranks that do not (receivers), at the start of a generation.

Every donor sends its own share of the pieces (state_pieces.py) to every receiver. First comes a preface from each donor; the first
donor's announces the header: the document and how the tensors are laid out. Then the pieces, a few under way at a time, and at the
end a digest of each (piece_digest.py), computed by both sides, on a thread of its own, while the next pieces travel.

Where this ends: a damaged piece is found, not repaired; and a donor returns when its bytes are on their way, so only the receivers'
own word says that they hold the state. Tensors on a GPU go through pinned memory with Gloo and directly with NCCL; neither has been
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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launcher.core.errors import UserCodeError
from launcher.core.types import JsonObject
from launcher.training.state.piece_digest import DIGEST_BYTES, digest
from launcher.training.state.pieces import ALONE_BYTES, BUNDLE_BYTES, Piece, Slice, TensorLayout, arrival, cut, shares

if TYPE_CHECKING:
    from launcher.training.comm.collective import Collective, Work
    from launcher.training.state.train_state import TrainState

UNDER_WAY = 4
"""Pieces of one donor that travel at a time. Measured with Gloo between two processes: 1 halves the pace, more than 4 gain nothing."""
_PREFACE = struct.Struct("<Q32s32s32s")
"""Bytes of the header (0 but from the first donor), its SHA-256, the layouts' SHA-256, and the SHA-256 of these three."""


@dataclass(frozen=True)
class StateMove:
    """Ranks of the new generation; no rank is in both."""

    donors: tuple[int, ...]
    """Hold the same state, bit for bit."""
    receivers: tuple[int, ...]


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
    collective: Collective, move: StateMove, state: TrainState, header: JsonObject, *, device: str, holds_own: bool
) -> JsonObject:
    """Called by every rank of the generation at the same point. A receiver gets the first donor's header, and the state is loaded.

    header: TrainState.document and whatever else there is to say; only the first donor's is read.
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


def _give(collective: Collective, move: StateMove, state: TrainState, header: JsonObject) -> None:
    tensors = state.tensors()
    layouts = layouts_of(tensors)
    me = move.donors.index(collective.rank)
    described = json.dumps([layout.to_json() for layout in layouts])
    text = f'{{"header": {json.dumps(header)}, "tensors": {described}}}'.encode() if me == 0 else b""
    under_way = [_send_bytes(collective, move, _preface(text, described.encode())), _send_bytes(collective, move, text)]
    pieces = cut(layouts)
    memory = _Memory(collective, _without_gaps(tensors, layouts))
    window: deque[tuple[_Cargo, list[Work]]] = deque()

    def finish() -> None:
        cargo, works = window.popleft()
        _wait(works)
        memory.release(cargo)

    digests: list[Future[bytes]] = []
    with ThreadPoolExecutor(1, "digests") as thread:
        for index in shares(pieces, len(move.donors))[me]:
            cargo = memory.cargo(pieces[index])
            cargo.gather()
            window.append((cargo, [collective.send(cargo.data, receiver) for receiver in move.receivers]))
            digests.append(_digested(thread, index, cargo))
            if len(window) >= UNDER_WAY:
                finish()
        while window:
            finish()
        under_way.append(_send_bytes(collective, move, b"".join(own.result() for own in digests)))
    for works in under_way:
        _wait(works)


class _Receiver:
    def __init__(self, collective: Collective, move: StateMove, state: TrainState, device: str, holds_own: bool) -> None:
        self._collective = collective
        self._move = move
        self._state = state
        self._device = device
        self._holds_own = holds_own

    def take(self) -> JsonObject:
        header, layouts = self._header()
        tensors = self._places(layouts)
        self._receive(cut(layouts), tensors)
        self._state.load({layout.name: tensors[layout.same_as or layout.name] for layout in layouts}, header)
        return header

    def _header(self) -> tuple[JsonObject, list[TensorLayout]]:
        first, *others = self._move.donors
        prefaces = [self._receive_preface(donor) for donor in self._move.donors]
        length, expected, layouts_digest = prefaces[0]
        text = self._receive_bytes(first, length)
        if hashlib.sha256(text).digest() != expected:
            raise StateDamaged(first, None, "its header does not have the digest that was announced")
        for donor, (_, _, other) in zip(others, prefaces[1:], strict=True):
            if other != layouts_digest:
                raise StateDamaged(donor, None, f"its tensors have other names, shapes or types than those of rank {first}")
        document = json.loads(text)
        return document["header"], [TensorLayout.from_json(item) for item in document["tensors"]]

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

    def _receive(self, pieces: tuple[Piece, ...], tensors: Mapping[str, Tensor]) -> None:
        donors = self._move.donors
        memory = _Memory(self._collective, tensors)
        window: deque[tuple[int, int, _Cargo, Work]] = deque()
        digests: list[list[tuple[int, Future[bytes]]]] = [[] for _ in donors]

        def finish() -> None:
            donor, index, cargo, work = window.popleft()
            work.wait()
            digests[donor].append((index, _digested(threads, index, cargo)))
            cargo.scatter()
            memory.release(cargo)

        with ThreadPoolExecutor(len(donors), "digests") as threads:
            for donor, index in arrival(shares(pieces, len(donors))):
                cargo = memory.cargo(pieces[index])
                window.append((donor, index, cargo, self._collective.recv(cargo.data, donors[donor])))
                if len(window) >= UNDER_WAY * len(donors):
                    finish()
            while window:
                finish()
        for donor, pairs in zip(donors, digests, strict=True):
            announced = self._receive_bytes(donor, len(pairs) * DIGEST_BYTES)
            for turn, (index, own) in enumerate(pairs):
                if announced[turn * DIGEST_BYTES :][:DIGEST_BYTES] != own.result():
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


class _Cargo:
    """The bytes of one piece: where they are in the state, or in memory of their own, from which they travel."""

    def __init__(self, parts: list[Tensor], staging: Tensor | None) -> None:
        self._parts = parts
        self.staging = staging
        self.data = parts[0] if staging is None else staging[: sum(part.numel() for part in parts)]

    def gather(self) -> None:
        if self.staging is not None:
            torch._foreach_copy_(self._places(), self._parts)

    def scatter(self) -> None:
        if self.staging is not None:
            torch._foreach_copy_(self._parts, self._places())

    def _places(self) -> list[Tensor]:
        return list(torch.split(self.data, [part.numel() for part in self._parts]))


class _Memory:
    """Tensors without gaps as bytes, piece by piece, on the device from which they travel."""

    def __init__(self, collective: Collective, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._device = torch.device(collective.device)
        self._large: dict[str, Tensor] = {}
        self._free: list[Tensor] = []

    def cargo(self, piece: Piece) -> _Cargo:
        parts = [self._bytes(part) for part in piece.slices]
        if len(parts) == 1 and parts[0].device.type == self._device.type:
            return _Cargo(parts, None)
        return _Cargo(parts, self._staging(max(piece.size_bytes, BUNDLE_BYTES), pinned=any(part.is_cuda for part in parts)))

    def release(self, cargo: _Cargo) -> None:
        """It has travelled: its memory may carry another piece. New memory costs more than the copy, since its pages are not there yet."""
        if cargo.staging is not None:
            self._free.append(cargo.staging)

    def _bytes(self, part: Slice) -> Tensor:
        if part.start == 0 and part.stop < ALONE_BYTES:
            return _as_bytes(self._tensors[part.name])
        if part.name not in self._large:
            self._large[part.name] = _as_bytes(self._tensors[part.name])
        return self._large[part.name][part.start : part.stop]

    def _staging(self, size: int, *, pinned: bool) -> Tensor:
        for index, free in enumerate(self._free):
            if free.numel() >= size and free.is_pinned() == pinned:
                return self._free.pop(index)
        return torch.empty(size, dtype=torch.uint8, device=self._device, pin_memory=pinned and self._device.type == "cpu")


def layouts_of(tensors: Mapping[str, Tensor]) -> list[TensorLayout]:
    """How tensors travel, in the order of their names. Raises UserCodeError for one that cannot (sparse, or of an exotic dtype)."""
    layouts = []
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.layout != torch.strided:
            raise UserCodeError(
                "a tensor of the training state cannot be sent to another worker",
                where=f"state {name}",
                given=f"layout {tensor.layout}",
                expected="a dense tensor",
            )
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = seen.setdefault(memory, name) if tensor.numel() else name
        strides = torch.empty_like(tensor, device="meta").stride()  # its own, or without gaps and overlaps where it has such
        dtype = str(tensor.dtype).removeprefix("torch.")
        tied = None if first == name else first
        layouts.append(TensorLayout(name, tuple(tensor.shape), dtype, strides, tensor.device.type != "cpu", tied))
    return layouts


def _without_gaps(tensors: Mapping[str, Tensor], layouts: list[TensorLayout]) -> dict[str, Tensor]:
    """The tensors as they are laid out: themselves, or copies of such as are views into something larger."""
    return {
        layout.name: tensor if tensor.stride() == layout.strides else tensor.clone()
        for layout, tensor in ((layout, tensors[layout.name]) for layout in layouts)
    }


def _as_bytes(tensor: Tensor) -> Tensor:
    """A view of the memory of a tensor without gaps: (n,) of uint8."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _preface(header: bytes, layouts: bytes) -> bytes:
    said = struct.pack("<Q32s32s", len(header), hashlib.sha256(header).digest(), hashlib.sha256(layouts).digest())
    return said + hashlib.sha256(said).digest()


def _digested(threads: ThreadPoolExecutor, index: int, cargo: _Cargo) -> Future[bytes]:
    """A piece's digest, in the background; waited for where the piece's memory is about to carry another one."""
    digested = threads.submit(digest, index, cargo.data)
    if cargo.staging is not None:
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
