"""A folder of pictures, decoded and transformed in Python: data that takes longer to read than a small model takes to train on it.

The pictures are PNG files of 224 x 224 pixels in three colours, whose lines are not filtered, so that zlib and NumPy decode them: none of the
project's dependencies can read JPEG.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIDE = 224
CLASSES = 10
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = 3


def make_pictures(folder: Path, count: int) -> None:
    """`count` files, each a field of colours with some noise."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 200, (8, 8, CHANNELS), dtype=np.uint8)
        fine = generator.integers(0, 40, (SIDE, SIDE, CHANNELS), dtype=np.uint8)
        (folder / f"{number:05d}.png").write_bytes(encoded(coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1) + fine))


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels (height, width, 3)."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + CHANNELS * width), dtype=np.uint8)  # each begins with the number of its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks
    )


def decoded(file: bytes) -> NDArray[np.uint8]:
    """The pixels (height, width, 3) of what `encoded` gave."""
    position, compressed, width, height = len(SIGNATURE), b"", 0, 0
    while position < len(file):
        length, kind = struct.unpack(">I4s", file[position : position + 8])
        content = file[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", content[:8])
        elif kind == b"IDAT":
            compressed += content
        position += length + 12
    lines = np.frombuffer(zlib.decompress(compressed), dtype=np.uint8).reshape(height, 1 + CHANNELS * width)
    return lines[:, 1:].reshape(height, width, CHANNELS)


class PictureFiles:
    """Files of a folder; for training a random part of each picture, turned over half of the time, in random light."""

    def __init__(self, files: list[Path], *, training: bool) -> None:
        self.files = files
        self.training = training

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = decoded(self.files[index].read_bytes()).astype(np.float32) / 255
        if self.training:
            side = np.random.randint(SIDE // 2, SIDE + 1)
            top, left = np.random.randint(0, SIDE - side + 1, 2)
            pixels = resized(pixels[top : top + side, left : left + side])
            if np.random.random() < 0.5:
                pixels = pixels[:, ::-1]
            mean = pixels.mean()
            pixels = (pixels - mean) * np.random.uniform(0.8, 1.2) + mean + np.random.uniform(-0.1, 0.1)
        else:
            pixels = resized(pixels[16:-16, 16:-16])
        pixels = (pixels - 0.45) / 0.25
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)), index % CLASSES


def resized(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """To SIDE x SIDE, bilinear."""
    height, width, _ = pixels.shape
    rows, columns = np.linspace(0, height - 1, SIDE, dtype=np.float32), np.linspace(0, width - 1, SIDE, dtype=np.float32)
    top, left = np.minimum(rows.astype(np.int64), height - 2), np.minimum(columns.astype(np.int64), width - 2)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    lines = pixels[top] * (1 - down) + pixels[top + 1] * down
    result: NDArray[np.float32] = lines[:, left] * (1 - right) + lines[:, left + 1] * right
    return result


class Pictures:
    """The files of a folder, a quarter of them held out."""

    def __init__(self, folder: str) -> None:
        files = sorted(Path(folder).glob("*.png"))
        held_out = len(files) // 4
        self.train, self.test = PictureFiles(files[held_out:], training=True), PictureFiles(files[:held_out], training=False)


class Convolutions(nn.Module):
    """As heavy as `repeats` says, on pictures made `shrink` times smaller first."""

    def __init__(self, repeats: int, shrink: int, channels: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.AvgPool2d(shrink), nn.Conv2d(CHANNELS, channels, 3, padding=1), nn.ReLU())
        blocks: list[Any] = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(repeats)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.last(self.blocks(self.first(pictures)))
        return scores
