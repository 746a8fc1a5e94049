"""The generators that code draws from without being handed one: torch's own on every device, Python's and NumPy's.

They are begun anew for each sample that is read and for each forward pass, so that what a data set or a model draws from them depends
neither on who computes nor on what was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def begin_operators(number: int) -> None:
    """Let torch's own begin at `number`, on every device."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # untyped in torch
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)


def begin_on_cpu(number: int) -> None:
    """Let torch's own on the CPU, Python's and NumPy's begin at `number`, 64 bits of which NumPy's takes the lower half."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


def begin_all(number: int) -> None:
    """Let all of them begin at `number`."""
    begin_on_cpu(number)
    begin_operators(number)


@contextmanager
def put_back_on_cpu() -> Iterator[None]:
    """Whatever is drawn inside, those that `begin_on_cpu` begins are as before then."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(own)
