"""Taking office: claim a term first, look second, then say what the term builds on.

Whoever claims later sees what came before; a term without a base is skipped by every reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from launcher.checkpoint.catalog import CheckpointInfo, list_checkpoints
from launcher.core.types import Generation, JsonObject, Step, Term, WorkerId
from launcher.record.desired import Desired
from launcher.record.lineage import LineageEntry, TermBase, lineage
from launcher.record.run_store import RunStore, Stream
from launcher.record.status import RunStatus
from launcher.runtime.protocol.coordinator import Found
from launcher.tracking.metrics import trained_seconds


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


def claim_and_look(run: RunStore, holder: str, at: str) -> tuple[Term, Inheritance]:
    """Take the next free term, then see what earlier ones left: nothing that counts can come after the look but before the claim."""
    term = run.claim_term(holder, at)
    return term, inherit(run)


def inherit(run: RunStore) -> Inheritance:
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
    entries = {entry.term: entry for entry in chain}
    spans = _records(run, "events", entries, "last")
    rows = _records(run, "metrics", entries, "seconds")
    ends = [(int(str(span["last"])), entry.end) for entry, span in spans]
    listed = max((last if end is None else min(last, end) for last, end in ends), default=0)
    measured = max((int(str(row["step"])) for entry, row in rows if entry.holds(int(str(row["step"])))), default=0)
    recorded = min(listed, measured)
    held = [row for entry, row in rows if entry.holds(int(str(row["step"]))) and int(str(row["step"])) <= recorded]
    generation = max((int(str(span["generation"])) for _, span in spans), default=0)
    return Step(recorded), Generation(generation), trained_seconds(held)


def _records(run: RunStore, stream: Stream, entries: Mapping[Term, LineageEntry], key: str) -> list[tuple[LineageEntry, JsonObject]]:
    """What the terms of the lineage wrote to a stream, of the kind that has this key."""
    segments = [(entries[term], run.segment(stream, name)) for term, _, name in run.segments(stream) if term in entries]
    return [(entry, record) for entry, records in segments for record in records if key in record]


def base_on_checkpoint(left: Inheritance, checkpoint: CheckpointInfo | None, workers: Iterable[WorkerId] = ()) -> TermBase:
    """`workers`: those without a state that stay, to load the checkpoint."""
    step = checkpoint.step if checkpoint else None
    return TermBase(from_term=left.term, checkpoint_step=step, adopted_step=None, workers=tuple(workers))


def base_on_workers(left: Inheritance, workers: Iterable[WorkerId]) -> TermBase:
    """Living workers hold what the ledger says and more; the term's own records begin where those of earlier terms end."""
    return TermBase(from_term=left.term, checkpoint_step=None, adopted_step=left.recorded, workers=tuple(workers))


def since_answered(found: Found, generation: Generation, applied: Step | None) -> Found:
    """What a worker's heartbeat says after it has answered: a state may have reached it meanwhile, and may be the only one."""
    if generation == found.generation:
        return replace(found, applied=applied)
    return replace(found, generation=generation, applied=applied, inside=False)  # its place there is not known


def adoptable(left: Inheritance, found: Iterable[Found]) -> list[Found]:
    """The living workers that a new term may take over; all others are to be ended.

    Somebody that an earlier term, or the newest one, gave up may be alive and hold a step that the others computed again
    without it. Of the newest term are those that it called first, or took over. They hold states of one line if they were
    all told of the newest generation that one of them entered, or that the ledger knows: nobody enters one before all of
    its members were told.
    """
    known = list(found)
    ours = [each for each in known if each.born == left.term or each.worker in left.workers]
    newest = max((each.generation for each in ours), default=left.generation)
    newest = max(newest, left.generation)
    blank = [each for each in known if each.applied is None and not each.generation]
    return [each for each in known if each in blank or (each in ours and each.seen >= newest)]
