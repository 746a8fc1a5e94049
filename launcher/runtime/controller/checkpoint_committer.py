"""Checkpoints on the controller's side: gather the parts of one generation, write the manifest, let old ones go. Runs in the controller process.

Parts come from the workers, one of each rank. Once all are there, and every member holds the steps before, the ledger is flushed and the manifest
written after it, on the store writer's thread: what a manifest rests on is durable before it. The inbox is told what became of each checkpoint.
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
from launcher.runtime.controller.inbox import CheckpointDecided, HigherTermSeen, Inbox
from launcher.runtime.controller.timing import Timing
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.store_writer import StoreWriter


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
        recorder: RunRecorder,
        spec: JobSpec,
        inbox: Inbox,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._run, self._term, self._writer, self._recorder, self._spec = run, term, writer, recorder, spec
        self._inbox, self._clock, self._timing = inbox, clock, timing
        self._parts: dict[Save, dict[int, CheckpointPart]] = {}
        """Of those that are not whole yet."""
        self._whole: dict[Save, list[CheckpointPart]] = {}
        """Until the rows of their steps are there."""
        self._start = Step(0)
        self._void = Generation(0)
        """What a generation up to this one has not saved whole will never be: a member is gone."""
        self._done: set[Save] = set()
        self._committing: dict[Save, list[CheckpointPart]] = {}
        self._steps: set[Step] = set()
        """Of which there is a checkpoint."""
        self._taken_over: dict[Save, float] = {}
        """Of those that were begun under an earlier controller: since when the missing parts are awaited."""
        self._newest: CheckpointInfo | None = None
        self._deletions: tuple[Term, Deletion] = (term, Deletion(run, term, clock))

    # gathering

    def done(self, save: Save) -> bool:
        """Whether it is decided: whoever still speaks of it may forget it, and nobody before. A saved step needs no second save."""
        if save in self._done or save.step in self._steps or save.step < self._start:
            return True
        return save.generation <= self._void and save not in self._pending()

    def _pending(self) -> set[Save]:
        return {*self._parts, *self._whole, *self._committing}

    def begin_term(self, term: Term, start: Step, steps: Iterable[Step]) -> None:
        """The term goes on from `start`; `steps`: of which the lineage has checkpoints. What an earlier term had begun is of another line."""
        self._term, self._start, self._steps = term, start, set(steps)
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

    def take(self, part: CheckpointPart) -> None:
        """Keep a part of a checkpoint that was begun, until all of them are there."""
        save = Save(part.step, part.generation)
        parts = self._parts.get(save)
        if parts is None:
            return
        parts[part.rank] = part
        if len(parts) == part.world_size:
            self._whole[save] = list(self._parts.pop(save).values())
            self._taken_over.pop(save, None)

    # committing

    @property
    def waiting(self) -> bool:
        """A checkpoint is whole and waits for the rows of its steps."""
        return bool(self._whole)

    def commit_due(self, on_line: Callable[[Step, Generation], bool]) -> None:
        """Commit what is whole and whose steps are recorded. `on_line`: whether training still goes on from a generation's step."""
        for save in [save for save in self._whole if save.step <= self._recorder.progress.passed]:
            if on_line(save.step, save.generation):
                self._flush_then_commit(save)
            else:
                self.abandon(save, "its steps were rolled back")

    def _flush_then_commit(self, save: Save) -> None:
        self._recorder.flush(ledger=True)
        self._commit(save)

    def _commit(self, save: Save) -> None:
        parts, term = self._whole.pop(save), self._term
        self._committing[save] = parts
        self._writer.submit(lambda: self._write(save, parts, term))

    def _write(self, save: Save, parts: list[CheckpointPart], term: Term) -> None:
        """On the writer's thread."""
        if save.step in self._steps:
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
            self._inbox.put(HigherTermSeen())
            return
        self._newest = CheckpointInfo(save.step, term)
        self._steps.add(save.step)
        self._decide(save, "", term)

    def _decide(self, save: Save, failure: str, term: Term) -> None:
        self._done.add(save)
        self._committing.pop(save, None)
        self._inbox.put(CheckpointDecided(save.step, save.generation, term, failure))

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
        """A part could not be written: this checkpoint will not be; the next boundary saves again. `detail`: "" where none needs to be."""
        if self._parts.pop(save, None) is not None or self._whole.pop(save, None) is not None:
            self._taken_over.pop(save, None)
            self._committing[save] = []
            term = self._term
            self._writer.submit(lambda: self._decide(save, detail, term))

    def saved(self, step: Step) -> None:
        """The step is saved: what other generations had begun to save of it is decided as well, or its end would be waited for in vain."""
        for save in [save for save in (*self._parts, *self._whole) if save.step == step]:
            self.abandon(save, "")

    def abandon_unfinished(self, up_to: Generation, detail: str) -> None:
        """A rank of this generation, or an earlier one, is gone: what misses a part will never be whole, also where none has come yet."""
        self._void = max(self._void, up_to)
        for save in [save for save in self._parts if save.generation <= up_to]:
            self.abandon(save, detail)

    def abandon_overdue(self) -> None:
        """What was begun under an earlier controller, and whose parts do not come."""
        for save, since in list(self._taken_over.items()):
            if self._clock.monotonic() - since > self._timing.taken_over_s:
                self.abandon(save, "a part that an earlier controller was to have does not come")

    # letting go

    def retain(self) -> None:
        """Let go of what retention does not keep, by the two phases."""
        newest = self._newest
        if newest is None:
            return
        deletion, keep = self._deletion(), self._spec.config.checkpoint.keep

        def write() -> None:
            in_flight = self._in_flight()
            deletion.name(keep=keep, newest_whole=newest, in_flight=in_flight)
            deletion.collect(in_flight=in_flight)

        self._writer.submit(write)

    def _in_flight(self) -> frozenset[str]:
        """Chunks of checkpoints that are not decided. On the writer's thread: copies, for the controller goes on meanwhile."""
        gathered = (part for parts in self._parts.copy().values() for part in parts.copy().values())
        whole = (part for parts in (*self._whole.copy().values(), *self._committing.copy().values()) for part in parts)
        return frozenset(chunk.digest for part in (*gathered, *whole) for chunk in part.chunks)

    def _deletion(self) -> Deletion:
        # One for a term: it remembers by its own clock how long an entry has been in the trash.
        if self._deletions[0] != self._term:
            self._deletions = (self._term, Deletion(self._run, self._term, self._clock))
        return self._deletions[1]

    def finish_deletion(self, poll_s: float) -> None:
        """After the end: see what is in the trash deleted, unless a later term takes over; bounded by three waits."""
        deletion = self._deletion()
        for _ in range(3):
            if not self._run.names("trash") or self._run.highest_term() > self._term:
                return
            time.sleep(poll_s)
            deletion.collect()
