"""The run store as processes see it: answers take time, and while there are faults some never come."""

from __future__ import annotations

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
    """It is listed far more often than written."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[str, list[ObjectInfo]] = {}

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._forget(key)

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        self._forget(key)
        return created

    def list(self, prefix: str) -> list[ObjectInfo]:
        known = self._listed.get(prefix)
        if known is None:
            known = self._listed[prefix] = super().list(prefix)
        return known

    def delete(self, keys: Iterable[str]) -> None:
        super().delete(keys)
        self._listed.clear()

    def _forget(self, key: str) -> None:
        while key:
            key = key.rpartition("/")[0]
            self._listed.pop(key, None)


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
