"""The trash of a run: what is about to be deleted, in one object for each decision to delete. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.core.types import Term
from launcher.record.parsing import parsed
from launcher.record.run_store import RunStore


@dataclass(frozen=True, kw_only=True)
class TrashEntry:
    id: str
    manifests: tuple[str, ...]
    """Keys, relative to the run."""
    blobs: tuple[str, ...]
    """Digests that, when the entry was written, no other checkpoint named."""

    @property
    def key(self) -> str:
        return f"trash/{self.id}.json"


def read_trash(run: RunStore) -> list[TrashEntry]:
    """Every entry, by its id. Raises StoreDamaged for one that is not whole."""
    found: list[TrashEntry] = []
    for name in run.names("trash"):
        path = f"trash/{name}"
        document = run.read(path)
        if document is not None:  # else it was deleted since it was listed
            found.append(parsed({**document, "id": name.removesuffix(".json")}, TrashEntry, where=f"{run.uri}/{path}"))
    return found


def put_in_trash(run: RunStore, term: Term, entry: TrashEntry) -> None:
    """Create the entry, in the name of the controller of `term`."""
    run.claim(entry.key, {"term": term, "manifests": list(entry.manifests), "blobs": list(entry.blobs)})


def named_manifests(trash: Iterable[TrashEntry]) -> frozenset[str]:
    """Keys of manifests, relative to the run, that the entries name together."""
    return frozenset(key for entry in trash for key in entry.manifests)


def named_blobs(trash: Iterable[TrashEntry]) -> frozenset[str]:
    """Digests that the entries name together."""
    return frozenset(digest for entry in trash for digest in entry.blobs)
