"""Our key-value store as torch's rendezvous expects it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import torch.distributed as dist

from launcher.training.comm.transport import KeyValueStore

ASK_AGAIN_S = 0.2
"""A wait for a key is cut into pieces of this length, so that it ends soon after the group was left."""


class TorchStore(dist.Store):  # type: ignore[name-defined, misc] # torch's stubs do not export it
    """Forwards to a KeyValueStore what forming a Gloo or NCCL group calls, and no more.

    Waiting raises TimeoutError, or InterruptedError once `left` says that the group was left.
    """

    def __init__(self, store: KeyValueStore, timeout_s: float, left: Callable[[], bool]) -> None:
        super().__init__()
        self._store = store
        self._timeout_s = timeout_s
        self._left = left

    def set(self, key: str, value: str | Iterable[int]) -> None:
        self._store.set(key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        return self._get(key, self._timeout_s)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self._get(key, self._timeout_s if timeout is None else timeout.total_seconds())

    def check(self, keys: Sequence[str]) -> bool:
        try:
            for key in keys:
                self._store.get(key, 0.0)
        except TimeoutError:
            return False
        return True

    def _get(self, key: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while not self._left():
            rest = deadline - time.monotonic()
            try:
                return self._store.get(key, min(max(rest, 0.0), ASK_AGAIN_S))
            except TimeoutError:
                if rest <= 0:
                    raise TimeoutError(f"no rank set {key} within {timeout_s:g} s") from None
        raise InterruptedError("the group was left")
