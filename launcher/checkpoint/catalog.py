"""Which checkpoints a run has, and the commit of a new one. Nothing here imports torch.

A checkpoint belongs to the run when its manifest exists, the lineage of terms includes it and it is not about to be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.chunks import read_chunk
from launcher.checkpoint.manifest import CheckpointManifest
from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt, StoreDamaged
from launcher.core.types import Step, Term
from launcher.record.lineage import LineageEntry, in_lineage
from launcher.record.run_store import RunStore, padded

_NAME = re.compile(r"(\d{12})-(\d{12})\.json")


@dataclass(frozen=True)
class CheckpointInfo:
    step: Step
    term: Term

    @property
    def key(self) -> str:
        """Of the manifest, relative to the run."""
        return manifest_key(self.step, self.term)


@dataclass(frozen=True)
class NewestWhole:
    info: CheckpointInfo | None
    manifest: CheckpointManifest | None
    skipped: tuple[CheckpointCorrupt, ...]
    """Why newer ones were passed over; to be said, never kept silent."""


@dataclass(frozen=True)
class Trash:
    """What the entries under trash/ name together."""

    manifests: frozenset[str]
    """Keys of manifests, relative to the run."""
    blobs: frozenset[str]
    """Digests."""


def manifest_key(step: int, term: int) -> str:
    return f"checkpoints/{padded(step)}-{padded(term)}.json"


def all_checkpoints(run: RunStore) -> list[CheckpointInfo]:
    """Every manifest there is, also outside the lineage and in the trash; newest first."""
    found = [match for name in run.names("checkpoints") if (match := _NAME.fullmatch(name))]
    infos = [CheckpointInfo(Step(int(match[1])), Term(int(match[2]))) for match in found]
    return sorted(infos, key=lambda info: (info.step, info.term), reverse=True)


def list_checkpoints(run: RunStore, chain: Sequence[LineageEntry]) -> list[CheckpointInfo]:
    """The run's checkpoints, newest first: those of the lineage (core.run_store.lineage) that the trash does not name.

    One that a base of the lineage names counts although it is in the trash: a controller about to be fenced put it there
    while its successor took it as its base, and it is not going to be deleted.
    """
    # The trash is read first: an entry leaves it only after its manifests are gone, so none can slip between the two lists.
    trash = read_trash(run)
    ours = [info for info in all_checkpoints(run) if in_lineage(chain, info.term, info.step)]
    return [
        info
        for info in ours
        if info.key not in trash.manifests or any(entry.checkpoint_step == info.step and info.term < entry.term for entry in chain)
    ]


def newest(run: RunStore, chain: Sequence[LineageEntry]) -> CheckpointInfo | None:
    """The newest checkpoint by its step; whether it is whole is not looked at."""
    return next(iter(list_checkpoints(run, chain)), None)


def newest_whole(run: RunStore, chain: Sequence[LineageEntry]) -> NewestWhole:
    """The newest checkpoint whose manifest and chunks are all there and undamaged. Reads every byte of it."""
    skipped: list[CheckpointCorrupt] = []
    for info in list_checkpoints(run, chain):
        try:
            manifest = read_manifest(run, info)
            for chunk in manifest.chunks:
                read_chunk(run, chunk, info.key)
        except CheckpointCorrupt as error:
            skipped.append(error)
            continue
        return NewestWhole(info, manifest, tuple(skipped))
    return NewestWhole(None, None, tuple(skipped))


def read_manifest(run: RunStore, info: CheckpointInfo) -> CheckpointManifest:
    """Raises CheckpointCorrupt when it is missing or damaged."""
    where = f"{run.uri}/{info.key}"
    try:
        document = run.read(info.key)
        if document is None:
            raise CheckpointCorrupt("the manifest of a checkpoint is missing")
        manifest = CheckpointManifest.from_json(document)
    except (CheckpointCorrupt, StoreDamaged) as error:
        raise CheckpointCorrupt(
            error.what if isinstance(error, CheckpointCorrupt) else "the manifest of a checkpoint is damaged",
            where=where,
            given=error.given,
            expected=error.expected,
            next="`launch resume RUN` goes on at the newest checkpoint that is whole",
        ) from error
    if (manifest.step, manifest.term) != (info.step, info.term):
        raise CheckpointCorrupt(
            "the manifest of a checkpoint is not the one that its key says",
            where=where,
            given=f"step {manifest.step}, term {manifest.term}",
            expected=f"step {info.step}, term {info.term}",
        )
    return manifest


def named_digests(run: RunStore, info: CheckpointInfo) -> frozenset[str]:
    """The chunks that a manifest names, read leniently: also of another version. None of them when nothing can be read."""
    try:
        document: Any = run.read(info.key)
        return frozenset(str(chunk["digest"]) for chunk in document["chunks"])
    except (StoreDamaged, KeyError, TypeError):
        return frozenset()


def reusable_chunks(run: RunStore, chain: Sequence[LineageEntry]) -> frozenset[str]:
    """Digests that need not be stored again: a checkpoint of the lineage names them and the trash does not."""
    named = [named_digests(run, info) for info in list_checkpoints(run, chain)]
    return frozenset().union(*named) - read_trash(run).blobs


def read_trash(run: RunStore) -> Trash:
    entries: list[Any] = [document for name in run.names("trash") if (document := run.read(f"trash/{name}"))]
    return Trash(
        manifests=frozenset(key for entry in entries for key in entry["manifests"]),
        blobs=frozenset(digest for entry in entries for digest in entry["blobs"]),
    )


def pinned(run: RunStore) -> frozenset[str]:
    """Keys of the manifests that somebody asked to keep, by an object pins/STEP-T.json."""
    return frozenset(f"checkpoints/{name}" for name in run.names("pins"))


def commit_manifest(run: RunStore, manifest: CheckpointManifest) -> bool:
    """Create the manifest. True: the checkpoint is committed. False: a higher term was claimed, and it may not count.

    May be called again after StoreUnavailable. Raises CheckpointAbandoned when a chunk is about to be deleted, or when
    another checkpoint has the key; then it is saved again at a later step.
    """
    key = manifest_key(manifest.step, manifest.term)
    doomed = read_trash(run).blobs.intersection(chunk.digest for chunk in manifest.chunks)
    if doomed:
        raise CheckpointAbandoned(
            "a chunk of a new checkpoint is about to be deleted",
            where=f"{run.uri}/{key}",
            given=f"{len(doomed)} of {len(manifest.chunks)} chunks are named in the trash",
            next="save again at a later step",
        )
    document = manifest.to_json()
    if not run.claim(key, document):
        existing = run.read(key)
        if existing is None or existing.get("chunks") != document["chunks"]:
            raise CheckpointAbandoned(
                "another checkpoint was committed under the same step and term", where=f"{run.uri}/{key}", next="save again at a later step"
            )
    return run.highest_term() <= manifest.term
