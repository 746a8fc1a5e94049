"""Where the ranks of a benchmark find each other: a KeyValueStore over TCP."""

from __future__ import annotations

from datetime import timedelta


class PortStore:
    def __init__(self, port: int, *, serves: bool = False, patience_s: float = 300.0) -> None:
        """`serves`: this process holds the keys; else another one does."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", port, is_master=serves, wait_for_workers=False, timeout=timedelta(seconds=patience_s))

    def set(self, key: str, value: bytes) -> None:
        self._store.set(key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Raises TimeoutError."""
        from torch.distributed import DistStoreError

        try:
            self._store.wait([key], timedelta(seconds=max(timeout_s, 0.001)))
        except DistStoreError as error:
            raise TimeoutError(key) from error
        return bytes(self._store.get(key))
