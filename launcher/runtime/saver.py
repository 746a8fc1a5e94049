"""Checkpoints on the controller's side: gather the parts of one generation, write the manifest, let old ones go.

All of it is written on the store writer's thread, after the events through the checkpoint's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from launcher.checkpoint.catalog import CheckpointInfo, commit_manifest
from launcher.checkpoint.deletion import Deletion
from launcher.checkpoint.manifest import CheckpointPart, assemble
from launcher.core.clock import Clock, timestamp
from launcher.core.errors import CheckpointAbandoned
from launcher.core.run_store import RunStore
from launcher.core.types import Step, Term
from launcher.runtime.store_writer import StoreWriter
from launcher.spec.job import JobSpec


class Saver:
    def __init__(
        self,
        run: RunStore,
        term: Term,
        writer: StoreWriter,
        spec: JobSpec,
        *,
        decided: Callable[[Step, str], None],
        fenced: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`decided` is told of each checkpoint: its step, and why it failed or ""; on the writer's thread."""
        self.term = term
        self._run, self._writer, self._spec, self._clock = run, writer, spec, clock
        self._decided, self._fenced = decided, fenced
        self._parts: dict[int, dict[int, CheckpointPart]] = {}
        self._done: set[int] = set()
        self._newest: CheckpointInfo | None = None
        self._deletions: tuple[Term, Deletion] = (term, Deletion(run, term, clock))

    def begins(self, step: int) -> bool:
        """Whether this is the first that is heard of the checkpoint at `step`."""
        if step in self._parts or step in self._done:
            return False
        self._parts[step] = {}
        return True

    def take(self, part: CheckpointPart) -> bool:
        """Keep a part; True when all of them are there."""
        parts = self._parts.get(part.step)
        if parts is None:
            return False
        parts[part.rank] = part
        return len(parts) == part.world_size

    def commit(self, step: int) -> None:
        parts = list(self._parts.pop(step).values())
        self._done.add(step)
        term = self.term

        def write() -> None:
            try:
                manifest = assemble(
                    parts,
                    run_id=self._run.run_id,
                    term=term,
                    global_batch_size=self._spec.config.trainer.global_batch_size,
                    created_at=timestamp(self._clock.now()),
                )
                self._require(chunk.digest for chunk in manifest.chunks)
                committed = commit_manifest(self._run, manifest)
            except CheckpointAbandoned as error:
                self._decided(Step(step), str(error))
                return
            if not committed:
                self._fenced()
                return
            self._newest = CheckpointInfo(Step(step), term)
            self._decided(Step(step), "")

        self._writer.submit(write)

    def _require(self, digests: Iterable[str]) -> None:
        """Every chunk is there: a deletion may have taken one that was stored again while it was being deleted."""
        missing = set(digests) - set(self._run.names("blobs"))
        if missing:
            raise CheckpointAbandoned(
                "a chunk of a new checkpoint is gone",
                where=self._run.uri,
                given=f"{len(missing)} missing",
                next="save again at a later step",
            )

    def abandon(self, step: int, detail: str) -> None:
        """A part could not be written: this checkpoint will not be; the next boundary saves again."""
        if self._parts.pop(step, None) is not None:
            self._done.add(step)
            self._writer.submit(lambda: self._decided(Step(step), detail))

    def retain(self) -> None:
        """Let go of what retention does not keep, by the two phases."""
        newest = self._newest
        if newest is None:
            return
        deletion = self._deletion()
        keep = self._spec.config.checkpoint.keep

        def write() -> None:
            deletion.name(keep=keep, newest_whole=newest)
            deletion.collect()

        self._writer.submit(write)

    def _deletion(self) -> Deletion:
        # One for a term: it remembers by its own clock how long an entry has been in the trash.
        if self._deletions[0] != self.term:
            self._deletions = (self.term, Deletion(self._run, self.term, self._clock))
        return self._deletions[1]

    def finish_deletion(self, poll_s: float) -> None:
        """After the end: see what is in the trash deleted, unless a later term takes over; bounded by three waits."""
        deletion = self._deletion()
        for _ in range(3):
            if not self._run.names("trash") or self._run.highest_term() > self.term:
                return
            time.sleep(poll_s)
            deletion.collect()
