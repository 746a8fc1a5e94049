"""Two-phase deletion of checkpoints: name them in the trash, wait, look again, delete.

The wait of two lease times is for controllers that began a term, and for readers that began to read, before the names were
in the trash. A controller that began its term since then ends the deletion: the next one finds the entry, waits by its own
clock and goes on. Manifests go first and the entry last, so that after a kill at any point no manifest names a chunk that
is gone, and nothing that was named is forgotten.

Where the guarantee stops: a process that is frozen between its last look at the terms and a request to delete may, when it
wakes, delete a chunk that was stored again in the meantime. Loading then finds it missing and falls back.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from launcher.checkpoint.catalog import CheckpointInfo, all_checkpoints, list_checkpoints, named_digests, pinned
from launcher.checkpoint.chunks import blob_key
from launcher.checkpoint.retention import expired, protected
from launcher.checkpoint.trash import TrashEntry, named_blobs, named_manifests, put_in_trash, read_trash
from launcher.core.clock import Clock
from launcher.core.types import Term
from launcher.record.lineage import lineage
from launcher.record.run_store import LEASE_S, RunStore, padded

WAIT_S = 2 * LEASE_S


class Deletion:
    """Deletes a run's checkpoints on behalf of the controller of one term.

    Call `name` after a commit and `collect` now and then, from one thread, and neither while chunks are being uploaded
    whose digests are not handed in as `in_flight`.
    """

    def __init__(self, run: RunStore, term: Term, clock: Clock) -> None:
        self._run = run
        self._term = term
        self._clock = clock
        self._first_seen: dict[str, float] = {}
        self._unnamed: dict[str, float] = {}
        """Chunks that no checkpoint named at the newest call, and since when that is known."""

    def name(self, *, keep: int, newest_whole: CheckpointInfo, in_flight: Collection[str] = ()) -> TrashEntry | None:
        """Phase one: name what retention lets go in a new entry of the trash; None when that is nothing.

        Chunks of saves that were abandoned go too, once no checkpoint named them at two calls that are two lease times apart: what
        training is about to compute again, or is being stored, is given the time to be committed.
        """
        if self._fenced():
            return None
        _, bases = self._run.terms()
        trash = read_trash(self._run)
        named, doomed = named_manifests(trash), named_blobs(trash)
        belonging = list_checkpoints(self._run, lineage(bases))
        everything = [info for info in all_checkpoints(self._run) if info in belonging or info.key not in named]
        going = expired(
            everything,
            belonging,
            keep=keep,
            bases=bases,
            pins=pinned(self._run),
            newest_whole=newest_whole,
        )
        kept = self._digests(set(everything) - set(going))
        dropped = self._digests(going)
        unnamed = frozenset(self._run.names("blobs")) - kept - dropped - doomed
        now = self._clock.monotonic()
        self._unnamed = {digest: self._unnamed.get(digest, now) for digest in unnamed}
        abandoned = {digest for digest, since in self._unnamed.items() if now - since >= WAIT_S}
        blobs = (dropped | abandoned) - kept - frozenset(in_flight)
        if not going and not blobs:
            return None
        entry = TrashEntry(
            id=f"{padded(self._term)}-{secrets.token_hex(6)}",
            manifests=tuple(info.key for info in going),
            blobs=tuple(sorted(blobs)),
        )
        put_in_trash(self._run, self._term, entry)
        self._first_seen[entry.id] = self._clock.monotonic()
        return entry

    def collect(self, *, in_flight: Collection[str] = ()) -> list[TrashEntry]:
        """Phase two, for every entry that was first seen two lease times ago, also another term's; returns those done.

        What a base, a pin or a remaining manifest names by now, or is in flight, stays and leaves the trash.
        """
        due: list[TrashEntry] = []
        for entry in read_trash(self._run):
            first_seen = self._first_seen.setdefault(entry.id, self._clock.monotonic())
            if self._clock.monotonic() - first_seen >= WAIT_S:
                due.append(entry)
        return due if due and self._delete(due, frozenset(in_flight)) else []

    def _delete(self, due: Collection[TrashEntry], in_flight: frozenset[str]) -> bool:
        """False when a higher term was claimed: then nothing more may be deleted.

        All that is due goes at once: a chunk that two entries share is named by the later one alone.
        """
        looked_at = self._clock.monotonic()
        if self._fenced():
            return False
        _, bases = self._run.terms()
        present = set(all_checkpoints(self._run))
        manifests = named_manifests(due)
        named = {info for info in present if info.key in manifests}
        going = named - protected(named, bases=bases, pins=pinned(self._run))
        blobs = named_blobs(due) - self._digests(present - going) - in_flight
        keys = [
            *sorted(info.key for info in going),
            *sorted(blob_key(digest) for digest in blobs),
            *sorted(entry.key for entry in due),
        ]
        for key in keys:
            if self._clock.monotonic() - looked_at >= LEASE_S:
                looked_at = self._clock.monotonic()
                if self._fenced():
                    return False
            self._run.store.delete([self._run.key(key)])
        return True

    def _fenced(self) -> bool:
        return self._run.highest_term() > self._term

    def _digests(self, checkpoints: Collection[CheckpointInfo]) -> frozenset[str]:
        return frozenset().union(*(named_digests(self._run, info) for info in checkpoints))
