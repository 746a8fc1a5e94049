"""The tensors of a training state as bytes: how they are laid out, and each piece as one run of bytes on the device that sends it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from launcher.core.errors import UserCodeError
from launcher.training.state.pieces import ALONE_BYTES, BUNDLE_BYTES, Slice, StatePiece, TensorLayout


class PieceBytes:
    """The bytes of one piece: a slice of the state's own memory, or the parts staged one behind the other in other memory."""

    def __init__(self, parts: list[Tensor], staging: Tensor | None) -> None:
        self._parts = parts
        self.staging = staging
        self.data = parts[0] if staging is None else staging[: sum(part.numel() for part in parts)]
        """What is sent or received: (n,) of uint8."""

    def gather(self) -> None:
        """Before they are sent: copy the parts to where they are staged."""
        if self.staging is not None:
            torch._foreach_copy_(self._staged(), self._parts)

    def scatter(self) -> None:
        """Once they have arrived: copy what is staged into the parts."""
        if self.staging is not None:
            torch._foreach_copy_(self._parts, self._staged())

    def _staged(self) -> list[Tensor]:
        return list(torch.split(self.data, [part.numel() for part in self._parts]))


class StateBytes:
    """Tensors without gaps as bytes, piece by piece, on the device of the transport."""

    def __init__(self, tensors: Mapping[str, Tensor], device: str) -> None:
        """`tensors`: laid out as `layouts_of` says, by name; `device`: where bytes have to be to be sent."""
        self._tensors = tensors
        self._device = torch.device(device)
        self._large: dict[str, Tensor] = {}
        self._free: list[Tensor] = []

    def of(self, piece: StatePiece) -> PieceBytes:
        """A single slice as it lies in the state, where it can be sent from there; else staged, to be gathered or scattered."""
        parts = [self._bytes(part) for part in piece.slices]
        if len(parts) == 1 and parts[0].device.type == self._device.type:
            return PieceBytes(parts, None)
        return PieceBytes(parts, self._staging(max(piece.size_bytes, BUNDLE_BYTES), pinned=any(part.is_cuda for part in parts)))

    def release(self, piece: PieceBytes) -> None:
        """The piece was sent or taken: its staging memory may hold another one.

        New memory would cost more than the copy into it, since its pages are not there yet.
        """
        if piece.staging is not None:
            self._free.append(piece.staging)

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
    """How tensors are sent, in the order of their names. Raises UserCodeError for one that cannot (sparse, or of an exotic dtype)."""
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


def without_gaps(tensors: Mapping[str, Tensor], layouts: list[TensorLayout]) -> dict[str, Tensor]:
    """The tensors as they are laid out: themselves, or copies of such as are views into something larger."""
    return {
        layout.name: tensor if tensor.stride() == layout.strides else tensor.clone()
        for layout, tensor in ((layout, tensors[layout.name]) for layout in layouts)
    }


def _as_bytes(tensor: Tensor) -> Tensor:
    """A view of the memory of a tensor without gaps: (n,) of uint8."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
