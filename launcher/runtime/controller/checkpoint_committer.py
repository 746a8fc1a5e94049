"""Checkpoints on the controller's side: gather the parts of one generation, write the manifest, let old ones go.

All of it is written on the store writer's thread, after the events through the checkpoint's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from launcher.checkpoint.catalog import CheckpointInfo, commit_manifest
from launcher.checkpoint.deletion import Deletion
from launcher.checkpoint.manifest import CheckpointPart, assemble
from launcher.core.clock import Clock, timestamp
from launcher.core.errors import CheckpointAbandoned
from launcher.core.types import Generation, Step, Term
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from launcher.runtime.records.store_writer import StoreWriter

TAKEN_OVER_S = 60.0


class Save(NamedTuple):
    """A checkpoint's parts all come from one generation."""

    step: Step
    generation: Generation


class CheckpointCommitter:
    def __init__(
        self,
        run: RunStore,
        term: Term,
        writer: StoreWriter,
        spec: JobSpec,
        *,
        decided: Callable[[Save, str, Term], None],
        fenced: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`decided` is told of each checkpoint, why it failed or "", and the term it was of; on the writer's thread."""
        self.term = term
        self._run, self._writer, self._spec, self._clock = run, writer, spec, clock
        self._decided, self._fenced = decided, fenced
        self._parts: dict[Save, dict[int, CheckpointPart]] = {}
        """Of those that are not whole yet."""
        self._whole: dict[Save, list[CheckpointPart]] = {}
        self._start = Step(0)
        self._void = Generation(0)
        """What a generation up to this one has not saved whole will never be: a member is gone."""
        self._done: set[Save] = set()
        self._committing: set[Save] = set()
        self._steps: set[Step] = set()
        """Of which there is a checkpoint."""
        self._taken_over: dict[Save, float] = {}
        """Of those that were begun under an earlier controller: since when the missing parts are awaited."""
        self._newest: CheckpointInfo | None = None
        self._deletions: tuple[Term, Deletion] = (term, Deletion(run, term, clock))

    def done(self, save: Save) -> bool:
        """Whether it is decided: whoever still speaks of it may forget it, and nobody before. A saved step needs no second save."""
        if save in self._done or save.step in self._steps or save.step < self._start:
            return True
        return save.generation <= self._void and save not in self._pending()

    def _pending(self) -> set[Save]:
        return {*self._parts, *self._whole, *self._committing}

    def begin_term(self, term: Term, start: Step, steps: Iterable[Step]) -> None:
        """The term goes on from `start`; `steps`: of which the lineage has checkpoints. What an earlier term had begun is of another line."""
        self.term, self._start, self._steps = term, start, set(steps)
        self._parts, self._whole, self._taken_over = {}, {}, {}

    def begins(self, save: Save) -> bool:
        """Whether this is the first that is heard of it."""
        if save in self._pending() or self.done(save):
            return False
        self._parts[save] = {}
        return True

    def take_over(self, save: Save) -> bool:
        """As `begins`, for one that was begun under an earlier controller: whoever has its missing parts may be gone."""
        if not self.begins(save):
            return False
        self._taken_over[save] = self._clock.monotonic()
        return True

    def take(self, part: CheckpointPart) -> bool:
        """Keep a part; True when all of them are there: once, and then `commit` may be called."""
        save = Save(part.step, part.generation)
        parts = self._parts.get(save)
        if parts is None:
            return False
        parts[part.rank] = part
        if len(parts) < part.world_size:
            return False
        self._whole[save] = list(self._parts.pop(save).values())
        self._taken_over.pop(save, None)
        return True

    def commit(self, save: Save) -> None:
        parts = self._whole.pop(save)
        self._committing.add(save)
        term, step = self.term, save.step

        def write() -> None:
            if step in self._steps:
                self._decide(save, "", term)
                return
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
                self._decide(save, str(error), term)
                return
            if not committed:
                self._fenced()
                return
            self._newest = CheckpointInfo(Step(step), term)
            self._steps.add(step)
            self._decide(save, "", term)

        self._writer.submit(write)

    def _decide(self, save: Save, failure: str, term: Term) -> None:
        self._done.add(save)
        self._committing.discard(save)
        self._decided(save, failure, term)

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

    def abandon(self, save: Save, detail: str) -> None:
        """A part could not be written: this checkpoint will not be; the next boundary saves again."""
        if self._parts.pop(save, None) is not None or self._whole.pop(save, None) is not None:
            self._taken_over.pop(save, None)
            self._committing.add(save)
            term = self.term
            self._writer.submit(lambda: self._decide(save, detail, term))

    def abandon_unfinished(self, up_to: Generation, detail: str) -> None:
        """A rank of this generation, or an earlier one, is gone: what misses a part will never be whole, also where none has come yet."""
        self._void = max(self._void, up_to)
        for save in [save for save in self._parts if save.generation <= up_to]:
            self.abandon(save, detail)

    def abandon_overdue(self) -> None:
        """What was begun under an earlier controller, and whose parts do not come."""
        for save, since in list(self._taken_over.items()):
            if self._clock.monotonic() - since > TAKEN_OVER_S:
                self.abandon(save, "a part that an earlier controller was to have does not come")

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
