"""The lineage of a run: which terms it consists of, and which steps of each belong to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.core.types import Step, Term, WorkerId


@dataclass(frozen=True, kw_only=True)
class TermBase:
    """What a term builds on: the work of `from_term` up to a step, taken from a checkpoint or from living workers."""

    from_term: Term | None
    checkpoint_step: Step | None
    adopted_step: Step | None
    workers: tuple[WorkerId, ...] = ()
    """The living workers that the term takes over. Any other worker that holds a state of an earlier term has been evicted."""

    @property
    def start(self) -> Step:
        """Training in this term starts from the state after this many steps."""
        return self.adopted_step if self.adopted_step is not None else self.checkpoint_step or Step(0)


@dataclass(frozen=True)
class LineageEntry:
    """Steps start < step <= end of a term belong to the run; `end` None means: all of them."""

    term: Term
    start: Step
    end: Step | None
    checkpoint_step: Step | None = None
    """The checkpoint, of an earlier term, that the term's base names; it is never deleted."""

    def holds(self, step: int) -> bool:
        """Whether this step, as this term computed it, belongs to the run."""
        return self.start < step and (self.end is None or step <= self.end)


def lineage(bases: Mapping[Term, TermBase]) -> list[LineageEntry]:
    """The chain of terms that the run consists of, oldest first.

    Follows `from_term` down from the highest term that has a base. Where a later term started from an earlier step
    than an older one reached, the older one is cut there, and so is everything below it.
    """
    chain: list[LineageEntry] = []
    term: Term | None = max(bases, default=None)
    cut: Step | None = None
    while term is not None and term in bases:
        base = bases[term]
        chain.append(LineageEntry(term, base.start, cut, base.checkpoint_step))
        cut = base.start if cut is None else min(cut, base.start)
        term = base.from_term if base.from_term is not None and base.from_term < term else None
    return chain[::-1]


def in_lineage(chain: Iterable[LineageEntry], term: int, step: int) -> bool:
    """Whether what `term` did up to and including `step` belongs to the run. A checkpoint taken at a term's own start does too."""
    return any(entry.term == term and step >= entry.start and (entry.end is None or step <= entry.end) for entry in chain)
