"""The run store as processes see it: answers take time, and while there are faults some never come."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Protocol

from launcher.core.errors import StoreUnavailable
from launcher.core.store import ObjectInfo
from tests.simulation.loop import Loop
from tests.support.stores import MemoryStore


class Weather(Protocol):
    """How much goes wrong at present: probabilities for one operation or message."""

    loss: float
    store_failure: float
    store_pause: float


class SimulatedStore(MemoryStore):
    """It is listed far more often than written: the list of a folder is the same object until something in it changes."""

    def __init__(self) -> None:
        super().__init__()
        self._folders: dict[str, list[ObjectInfo]] = {}

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._note(key, data)

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        if created:
            self._note(key, data)
        return created

    def list(self, prefix: str) -> list[ObjectInfo]:
        """A run's folders have no folders in them."""
        return self._folders.get(prefix, [])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            super().delete([key])
            folder = key.rpartition("/")[0]
            self._folders[folder] = [info for info in self._folders.get(folder, ()) if info.key != key]

    def _note(self, key: str, data: bytes) -> None:
        folder = key.rpartition("/")[0]
        others = [info for info in self._folders.get(folder, ()) if info.key != key]
        insort(others, ObjectInfo(key, len(data)), key=lambda info: info.key)
        self._folders[folder] = others


class View:
    """Whoever calls it is the process whose event is being handled."""

    def __init__(self, store: MemoryStore, loop: Loop, weather: Weather) -> None:
        self.uri = store.uri
        self._store, self._loop, self._weather = store, loop, weather

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def list(self, prefix: str) -> list[ObjectInfo]:
        self._pause()
        return self._store.list(prefix)

    def put(self, key: str, data: bytes) -> None:
        self._before()
        self._store.put(key, data)
        self._after()

    def create(self, key: str, data: bytes) -> bool:
        self._before()
        created = self._store.create(key, data)
        self._after()
        return created

    def delete(self, keys: Iterable[str]) -> None:
        self._store.delete(keys)

    def _pause(self) -> None:
        loop = self._loop
        if loop.chance(self._weather.store_pause):
            assert loop.current is not None
            loop.current.block(loop.uniform(0.001, 0.3))

    def _before(self) -> None:
        self._pause()
        if self._loop.chance(self._weather.store_failure):
            raise StoreUnavailable("no answer; nothing was written")

    def _after(self) -> None:
        if self._loop.chance(self._weather.store_failure):
            raise StoreUnavailable("no answer; it was written")
        self._pause()
