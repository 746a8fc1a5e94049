"""Activation checkpointing seen from outside: does a model compute parts of its forward pass again, and what would it give without?

torch.utils.checkpoint looks up these two names of its own at each call, so they can be replaced for a while (torch 2.x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch.utils import checkpoint

_REENTRANT = "CheckpointFunction"
_NON_REENTRANT = [name for name in vars(checkpoint) if name.startswith("_checkpoint_without_reentrant_generator")]
"""A function, and in newer versions one behind it."""


@contextmanager
def watched(seen: Callable[[], None]) -> Iterator[None]:
    """Call `seen` whenever a part of a forward pass is to be computed again."""

    def telling(function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any, **settings: Any) -> Any:
            seen()
            return function(*arguments, **settings)

        return told

    with _replaced(telling(checkpoint.CheckpointFunction.apply), telling):
        yield


@contextmanager
def none() -> Iterator[None]:
    """Everything is kept for the backward pass, and nothing computed again."""

    def called(function: Callable[..., Any], _preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)

    def nothing_around(*_: Any, **__: Any) -> Iterator[None]:
        yield

    with _replaced(called, lambda _: nothing_around):
        yield


@contextmanager
def _replaced(apply: Callable[..., Any], around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(checkpoint, _REENTRANT, SimpleNamespace(apply=apply)))
        for name in _NON_REENTRANT:
            stack.enter_context(mock.patch.object(checkpoint, name, around(getattr(checkpoint, name))))
        yield
