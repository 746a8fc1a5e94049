"""Object stores for tests: one in memory, and wrappers that die, lose answers or count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from launcher.core.errors import StoreUnavailable
from launcher.core.store import KeyMissing, ObjectInfo, ObjectStore


class MemoryStore:
    """A dictionary. `objects` may be looked at and damaged."""

    def __init__(self) -> None:
        self.uri = "memory://runs"
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise KeyMissing(key) from None

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def list(self, prefix: str) -> list[ObjectInfo]:
        folder = f"{prefix}/" if prefix else ""
        return [ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(folder)]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Killed(BaseException):
    """The process ended here."""


class MortalStore:
    """Counts writes and deletions, each key on its own; the process dies just before or just after the one numbered `dies_at`."""

    def __init__(self, inner: ObjectStore, *, dies_at: int | None = None, when: Literal["before", "after"] = "before") -> None:
        self.uri = inner.uri
        self.inner = inner
        self.writes = 0
        self._dies_at = dies_at
        self._when = when

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def list(self, prefix: str) -> list[ObjectInfo]:
        return self.inner.list(prefix)

    def put(self, key: str, data: bytes) -> None:
        self._count("before")
        self.inner.put(key, data)
        self._count("after")

    def create(self, key: str, data: bytes) -> bool:
        self._count("before")
        created = self.inner.create(key, data)
        self._count("after")
        return created

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._count("before")
            self.inner.delete([key])
            self._count("after")

    def _count(self, when: Literal["before", "after"]) -> None:
        if when == "before":
            self.writes += 1
        if self._dies_at == self.writes and when == self._when:
            raise Killed


class ForgetfulStore(MemoryStore):
    """Loses the answer to a create: either a retry then finds the key taken by its own write, or the caller meets an error."""

    def __init__(self, *, answer: Literal["exists", "error"]) -> None:
        super().__init__()
        self.forgets = False
        self._answer = answer

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        if not self.forgets:
            return created
        if self._answer == "error":
            self.forgets = False
            raise StoreUnavailable("no answer")
        return False
