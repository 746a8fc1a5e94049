"""The digest of a piece that is sent: a sum that keeps up with memory, and SHA-256 over the sum, the piece's index and its length.

The bytes are taken as rows of 1024 64-bit words and the rows are added up, modulo 2^64; SHA-256 covers the 1024 sums and the bytes
behind the last whole row. Measured on a CPU: four times as fast as crc32, ten times as SHA-256 of all bytes.

It finds: any change within one word or one row, so every burst of up to 8 KiB; bytes lost, doubled or shifted; a piece in another's
place or of another length; one that did not arrive. It does not find: whole rows of one piece in another order; changes in several
rows that cancel in their column. Faults of a transmission do not look like that. It does not protect against
somebody who changes pieces on purpose.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIGEST_BYTES = hashlib.sha256().digest_size
WORDS = 1024
_ROW_BYTES = WORDS * 8


def digest(index: int, piece: Tensor) -> bytes:
    """Of DIGEST_BYTES bytes. `index`: the piece's place in the cut; `piece`: its bytes, (n,) of uint8, contiguous, on any device."""
    whole = piece.numel() // _ROW_BYTES * _ROW_BYTES
    found = hashlib.sha256(struct.pack("<QQ", index, piece.numel()))
    found.update(_sums(piece[:whole]).tobytes())
    found.update(piece[whole:].cpu().numpy().tobytes())
    return found.digest()


def _sums(rows: Tensor) -> NDArray[np.int64]:
    """(1024,)"""
    sums: NDArray[np.int64]
    if rows.device.type == "cpu":  # numpy adds up rows about 1.6 times as fast as torch
        sums = np.add.reduce(rows.numpy().view(np.int64).reshape(-1, WORDS), axis=0, dtype=np.int64)
        return sums
    aligned = rows if rows.storage_offset() % 8 == 0 else rows.clone()
    sums = aligned.view(torch.int64).view(-1, WORDS).sum(0).cpu().numpy()
    return sums
