"""Handwritten digits that come with scikit-learn: 1797 real images of 8x8 pixels, nothing to download.

Source: the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from models.in_memory import InMemory

HOLD_OUT = 5
"""Every fifth image of each digit is held out."""


class Digits:
    """`train` (1442 images) and `test` (355), each digit in the same proportion; pixels have mean 0 and deviation 1 over `train`."""

    def __init__(self) -> None:
        rows = torch.from_numpy(np.loadtxt(_file(), delimiter=",", dtype=np.float32))
        images = rows[:, :-1].reshape(-1, 1, 8, 8)
        labels = rows[:, -1].long()
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(10):
            held_out[torch.nonzero(labels == digit).flatten()[HOLD_OUT - 1 :: HOLD_OUT]] = True
        mean, deviation = images[~held_out].mean(), images[~held_out].std()
        images = (images - mean) / deviation
        self.train = InMemory(images[~held_out], labels[~held_out])
        self.test = InMemory(images[held_out], labels[held_out])


def _file() -> Path:
    """The table as scikit-learn ships it, 64 pixels and the digit a row. Importing scikit-learn to read it would take two seconds."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits come with scikit-learn, which is not installed", name="sklearn")
    return Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
