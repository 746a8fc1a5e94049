"""Whether a place can hold a run store: the verbs that records rest on, tried with a throwaway object."""

from __future__ import annotations

import secrets

from launcher.core.errors import StoreUnavailable
from launcher.core.store import KeyMissing, ObjectStore

FOLDER = "doctor"
"""Of the throwaway objects; a run's id has a dash, so no run is called that."""


def check_store(store: ObjectStore) -> None:
    """Write, read and delete, and see that a second create is refused. Raises StoreUnavailable that says what does not work."""
    key, first = f"{FOLDER}/{secrets.token_hex(8)}", secrets.token_bytes(16)
    store.create(key, first)  # also False when it was written and the answer was lost: what counts is read below
    try:
        if store.create(key, b"a second writer"):
            raise _unfit(
                store, "it let a second create replace the first", "conditional writes (If-None-Match), as S3, GCS and Azure have them"
            )
        if store.get(key) != first:
            raise _unfit(store, "it read back something else than what was written", "that an object is read as it was written")
        if key not in [item.key for item in store.list(FOLDER)]:
            raise _unfit(store, "it does not list what was just written", "listings that show every object at once")
    finally:
        store.delete([key])
    try:
        store.get(key)
    except KeyMissing:
        return
    raise _unfit(store, "it still has what was deleted", "that a deleted object is gone at once")


def _unfit(store: ObjectStore, what: str, expected: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store cannot hold runs: {what}", where="runs", given=store.uri, expected=expected, next="set runs= to a store that has this"
    )
