"""What earlier terms of a run left in its store: how far its ledger goes, its checkpoints, its last status. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from launcher.checkpoint.catalog import CheckpointInfo, list_checkpoints
from launcher.core.types import Generation, JsonObject, Step, Term, WorkerId
from launcher.record.desired import Desired
from launcher.record.events import LedgerEntry, decode, kind_of
from launcher.record.lineage import LineageEntry, lineage
from launcher.record.rows import MetricsRow, decode_row
from launcher.record.run_store import RunStore, Stream
from launcher.record.status import RunStatus


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What earlier terms left."""

    term: Term | None
    """The highest one with a base; None for a run that never had a controller."""
    chain: tuple[LineageEntry, ...]
    status: RunStatus | None
    reached: Step
    """The highest step that earlier terms are known to have committed."""
    recorded: Step
    """The ledger in the store goes as far as this step."""
    generation: Generation
    """The highest in the ledger; a new term numbers its own from above."""
    workers: frozenset[WorkerId]
    """Those that the newest term took over from the one before."""
    train_seconds: float
    """Spent in the steps of the ledger."""
    checkpoints: tuple[CheckpointInfo, ...]
    """Newest first."""

    def ended(self, desired: Desired) -> bool:
        """Whether the run has its final state and nobody asked to go on from it."""
        return self.status is not None and self.status.state.terminal and (desired.resumes is None or desired.resumes != self.term)


def inherit(run: RunStore) -> Inheritance:
    """Read it. Raises StoreUnavailable, and StoreDamaged where an object is not what was written there."""
    _, bases = run.terms()
    chain = tuple(lineage(bases))
    term = chain[-1].term if chain else None
    status = run.status(term) if term is not None else None
    checkpoints = tuple(list_checkpoints(run, chain))
    recorded, generation, seconds = _ledger(run, chain)
    reached = max([recorded, chain[-1].start if chain else 0, status.step if status else 0, *(info.step for info in checkpoints[:1])])
    return Inheritance(
        term=term,
        chain=chain,
        status=status,
        reached=Step(reached),
        recorded=recorded,
        generation=generation,
        workers=frozenset(bases[term].workers) if term is not None else frozenset(),
        train_seconds=seconds,
        checkpoints=checkpoints,
    )


def _ledger(run: RunStore, chain: Iterable[LineageEntry]) -> tuple[Step, Generation, float]:
    """How far the store has both ledger and rows of metrics, the highest generation in it, and the seconds spent in those steps.

    They are segments of their own, written one after the other: what only one of them has, the next term writes anew.
    """
    terms = {entry.term: entry for entry in chain}
    spans = list(_spans(run, terms))
    rows = [row for term, row in _rows(run, terms) if term.holds(row.step)]
    ends = [(span.last, term.end) for term, _, span in spans]
    listed = max((last if end is None else min(last, end) for last, end in ends), default=0)
    measured = max((row.step for row in rows), default=0)
    recorded = min(listed, measured)
    generation = max((generation for _, generation, _ in spans), default=Generation(0))
    return Step(recorded), generation, sum(row.seconds for row in rows if row.step <= recorded)


def _spans(run: RunStore, terms: Mapping[Term, LineageEntry]) -> Iterator[tuple[LineageEntry, Generation, LedgerEntry]]:
    """The ledger of the terms of the lineage."""
    for term, where, record in _records(run, "events", terms):
        if record.get("kind") == kind_of(LedgerEntry):
            stored = decode(record, where=where)
            if isinstance(stored.event, LedgerEntry):
                yield term, stored.generation, stored.event


def _rows(run: RunStore, terms: Mapping[Term, LineageEntry]) -> Iterator[tuple[LineageEntry, MetricsRow]]:
    """The rows of training steps that the terms of the lineage wrote."""
    for term, where, record in _records(run, "metrics", terms):
        if isinstance(row := decode_row(record, where=where), MetricsRow):
            yield term, row


def _records(run: RunStore, stream: Stream, terms: Mapping[Term, LineageEntry]) -> Iterator[tuple[LineageEntry, str, JsonObject]]:
    """What the terms of the lineage wrote to a stream, and where it stands."""
    for term, _, name in run.segments(stream):
        if term in terms:
            for record in run.segment(stream, name):
                yield terms[term], f"{run.uri}/{stream}/{name}", record
