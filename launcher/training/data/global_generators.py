"""The generators that a data set draws from without being handed one: Python's, NumPy's and torch's own.

They are begun anew for each sample, so that what is drawn depends neither on who reads nor on what was read before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def begin_generators(number: int) -> None:
    """Let all three begin at `number`, 64 bits of which NumPy's takes the lower half."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


@contextmanager
def generators_put_back() -> Iterator[None]:
    """Whatever is drawn inside, the generators are as before then."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(own)
