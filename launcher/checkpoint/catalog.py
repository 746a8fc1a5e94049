"""Which checkpoints a run has, and the commit of a new one. Nothing here imports torch.

A checkpoint belongs to the run when its manifest exists, the lineage of terms includes it and it is not about to be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from launcher.checkpoint.manifest import CheckpointManifest
from launcher.checkpoint.trash import named_blobs, named_manifests, read_trash
from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt, StoreDamaged
from launcher.core.types import Step, Term
from launcher.record.lineage import LineageEntry, in_lineage
from launcher.record.parsing import parsed
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


class _Digest(Struct):
    digest: str


class _Chunks(Struct):
    """What every version of a manifest has."""

    chunks: tuple[_Digest, ...]


def manifest_key(step: int, term: int) -> str:
    """The key of a manifest, relative to the run."""
    return f"checkpoints/{padded(step)}-{padded(term)}.json"


def all_checkpoints(run: RunStore) -> list[CheckpointInfo]:
    """Every manifest there is, also outside the lineage and in the trash; newest first."""
    found = [match for name in run.names("checkpoints") if (match := _NAME.fullmatch(name))]
    infos = [CheckpointInfo(Step(int(match[1])), Term(int(match[2]))) for match in found]
    return sorted(infos, key=lambda info: (info.step, info.term), reverse=True)


def list_checkpoints(run: RunStore, chain: Sequence[LineageEntry]) -> list[CheckpointInfo]:
    """The run's checkpoints, newest first: those of the lineage that the trash does not name.

    One that a base of the lineage names counts although it is in the trash: a controller about to be fenced put it there
    while its successor took it as its base, and it is not going to be deleted.
    """
    # The trash is read first: an entry leaves it only after its manifests are gone, so none can slip between the two lists.
    doomed = named_manifests(read_trash(run))
    ours = [info for info in all_checkpoints(run) if in_lineage(chain, info.term, info.step)]
    return [
        info
        for info in ours
        if info.key not in doomed or any(entry.checkpoint_step == info.step and info.term < entry.term for entry in chain)
    ]


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
        manifest = parsed(run.read(info.key), _Chunks, where=f"{run.uri}/{info.key}")
    except StoreDamaged:
        return frozenset()
    return frozenset(chunk.digest for chunk in manifest.chunks)


def pinned(run: RunStore) -> frozenset[str]:
    """Keys of the manifests that somebody asked to keep, by an object pins/STEP-T.json."""
    return frozenset(f"checkpoints/{name}" for name in run.names("pins"))


def commit_manifest(run: RunStore, manifest: CheckpointManifest) -> bool:
    """Create the manifest. True: the checkpoint is committed. False: a higher term was claimed, and it may not count.

    May be called again after StoreUnavailable. Raises CheckpointAbandoned when a chunk is about to be deleted, or when
    another checkpoint has the key; then it is saved again at a later step.
    """
    key = manifest_key(manifest.step, manifest.term)
    doomed = named_blobs(read_trash(run)).intersection(chunk.digest for chunk in manifest.chunks)
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
