"""Taking office: claim a term first, look second, then say what the term builds on.

Whoever claims later sees what came before; a term without a base is skipped by every reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.checkpoint.catalog import CheckpointInfo, list_checkpoints
from launcher.core.run_store import Desired, LineageEntry, RunStore, TermBase, lineage
from launcher.core.types import Step, Term
from launcher.spec.status import RunStatus
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
    train_seconds: float
    """Spent in the steps of the ledger."""
    checkpoints: tuple[CheckpointInfo, ...]
    """Newest first."""

    def ended(self, desired: Desired) -> bool:
        """Whether the run has its final state and nobody asked to go on from it."""
        return self.status is not None and self.status.state.terminal and (desired.resumes is None or desired.resumes != self.term)


def inherit(run: RunStore) -> Inheritance:
    _, bases = run.terms()
    chain = tuple(lineage(bases))
    term = chain[-1].term if chain else None
    document = run.status(term) if term is not None else None
    status = RunStatus.from_json(document) if document is not None else None
    checkpoints = tuple(list_checkpoints(run, chain))
    recorded, seconds = _ledger(run, chain)
    reached = max([recorded, chain[-1].start if chain else 0, status.step if status else 0, *(info.step for info in checkpoints[:1])])
    return Inheritance(
        term=term,
        chain=chain,
        status=status,
        reached=Step(reached),
        recorded=recorded,
        train_seconds=seconds,
        checkpoints=checkpoints,
    )


def _ledger(run: RunStore, chain: Iterable[LineageEntry]) -> tuple[Step, float]:
    entries = {entry.term: entry for entry in chain}
    segments = [(entries[term], run.segment("metrics", name)) for term, _, name in run.segments("metrics") if term in entries]
    rows = [row for entry, records in segments for row in records if "seconds" in row and entry.holds(int(str(row["step"])))]
    return Step(max((int(str(row["step"])) for row in rows), default=0)), trained_seconds(rows)


def base_on_checkpoint(left: Inheritance, checkpoint: CheckpointInfo | None) -> TermBase:
    return TermBase(from_term=left.term, checkpoint_step=checkpoint.step if checkpoint else None, adopted_step=None)


def base_on_workers(left: Inheritance) -> TermBase:
    """Living workers hold what the ledger says and more; the term's own records begin where those of earlier terms end."""
    return TermBase(from_term=left.term, checkpoint_step=None, adopted_step=left.recorded)
