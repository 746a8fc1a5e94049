from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.pictures import SIDE, Pictures, decoded, encoded, make_pictures, resized

pytestmark = pytest.mark.unit


def test_a_picture_is_decoded_to_what_was_encoded() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decoded(encoded(pixels)), pixels)


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(1).random((SIDE, SIDE, 3), dtype=np.float32)
    assert np.allclose(resized(pixels), pixels, atol=1e-6)


def test_a_quarter_of_the_files_is_held_out(tmp_path: Path) -> None:
    make_pictures(tmp_path, 4)
    data = Pictures(str(tmp_path))
    assert (len(data.train), len(data.test)) == (3, 1)
    picture, label = data.train[2]
    assert (picture.shape, picture.dtype, label) == ((3, SIDE, SIDE), torch.float32, 2)
