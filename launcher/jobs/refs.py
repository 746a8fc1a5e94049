"""Which run is meant: names, ids and unique prefixes of either."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec import DecodeError, Struct
from msgspec.json import decode

from launcher.config.schema import NAME_PATTERN
from launcher.core.errors import RunNotFound, StoreDamaged, nearest
from launcher.core.store import KeyMissing, ObjectStore, is_local, local_path, open_store
from launcher.core.types import RunId
from launcher.record.encoding import encode
from launcher.record.run_store import RunStore

NAMES = "names"


@dataclass(frozen=True)
class RunRef:
    """One run that exists."""

    runs: str
    """Absolute folder or URI that holds it."""
    run_id: RunId
    name: str

    @property
    def uri(self) -> str:
        """Where its record is."""
        return f"{self.runs}/{self.run_id}"

    def open(self) -> RunStore:
        """The run's part of the store. Raises StoreUnavailable where the place cannot be used."""
        return RunStore(open_store(self.runs), self.run_id)


@dataclass(frozen=True)
class NameRecord:
    name: str
    run_id: RunId
    created_at: str


class _StoredName(Struct):
    run_id: RunId
    created_at: str


def default_runs() -> str:
    """Where runs are looked for by default: LAUNCHER_RUNS, else ./runs."""
    return os.environ.get("LAUNCHER_RUNS") or "./runs"


def absolute_runs(runs: str) -> str:
    """The same place, named so that it means the same in another folder and on another machine with that store."""
    return str(local_path(runs)) if is_local(runs) else runs.rstrip("/")


def person() -> str:
    """user@host, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read_name(store: ObjectStore, name: str) -> NameRecord | None:
    """Whose name it is; None where it is free. Raises StoreDamaged."""
    try:
        stored = decode(store.get(_key(name)), type=_StoredName)
    except KeyMissing:
        return None
    except DecodeError:
        raise StoreDamaged(
            "the record of a run's name is not what was written there",
            where=f"{store.uri}/{_key(name)}",
            expected="a JSON object with run_id and created_at",
            next="restore the file from a copy, or delete it: the run then has no name",
        ) from None
    return NameRecord(name, stored.run_id, stored.created_at)


def take_name(store: ObjectStore, record: NameRecord) -> bool:
    """Make the run exist under its name; False when the name is another run's. A lost answer is resolved by reading back."""
    if store.create(_key(record.name), encode({"run_id": record.run_id, "created_at": record.created_at})):
        return True
    existing = read_name(store, record.name)
    return existing is not None and existing.run_id == record.run_id


def free_name(store: ObjectStore, name: str) -> None:
    """The run then has no name; it is no error where it had none."""
    store.delete([_key(name)])


def all_names(store: ObjectStore) -> list[NameRecord]:
    """Every run, newest first."""
    names = [item.key.removeprefix(f"{NAMES}/").removesuffix(".json") for item in store.list(NAMES)]
    with ThreadPoolExecutor(16) as pool:
        records = [record for record in pool.map(lambda name: read_name(store, name), names) if record is not None]
    return sorted(records, key=lambda record: (record.created_at, record.name), reverse=True)


def find(word: str, runs: str) -> RunRef:
    """The run with this name or id, or the only one whose name or id begins with it. Raises RunNotFound."""
    place = absolute_runs(runs)
    store = open_store(place)
    exact = read_name(store, word) if NAME_PATTERN.fullmatch(word) else None
    if exact is not None:
        return RunRef(place, exact.run_id, exact.name)
    records = all_names(store)
    matches = [record for record in records if record.run_id == word]
    matches = matches or [record for record in records if word and (record.name.startswith(word) or record.run_id.startswith(word))]
    if len(matches) == 1:
        return RunRef(place, matches[0].run_id, matches[0].name)
    if matches:
        raise RunNotFound(
            f"several runs begin with {word}",
            where=place,
            given=word,
            expected=f"one of {', '.join(sorted(record.name for record in matches))}",
        )
    raise RunNotFound(f"there is no run {word}", where=place, given=word, expected=_near(word, records), next=_elsewhere(records))


def _near(word: str, records: Sequence[NameRecord]) -> str:
    near = nearest(word, [record.name for record in records] + [record.run_id for record in records])
    return near if near.startswith("did you mean") or len(records) <= 8 else f"a name of the {len(records)} runs that `launch ls` shows"


def _elsewhere(records: Sequence[NameRecord]) -> str:
    return "" if records else "there are no runs here: say where they are by --runs or LAUNCHER_RUNS"


def _key(name: str) -> str:
    return f"{NAMES}/{name}.json"
