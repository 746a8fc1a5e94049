"""What the store says of one run at one moment, and what follows from it together with what the backend knows.

Pure but for `read_snapshot`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property

from launcher.backends.base import Owner
from launcher.core.errors import StoreDamaged
from launcher.core.types import Term
from launcher.record.desired import Desired
from launcher.record.lineage import TermBase
from launcher.record.run_store import LEASE_S, RunStore
from launcher.record.status import JobState, RunStatus

LAUNCH_GRACE_S = 2.0
"""A run exists a moment before its backend knows it: for so long it is not taken for dead."""


@dataclass(frozen=True)
class Snapshot:
    desired: Desired
    highest: Term
    """The highest claimed term, 0 when none; it may have no base yet."""
    bases: dict[Term, TermBase]
    written: RunStatus | None
    """By the holder of the visible term."""

    @cached_property
    def visible(self) -> Term | None:
        """The highest term with a base: what readers follow."""
        return max(self.bases, default=None)

    @property
    def resuming(self) -> bool:
        """A resume was asked for and no controller has begun a term since."""
        return self.visible is not None and self.desired.resumes == self.visible

    @property
    def pending(self) -> bool:
        """No controller has begun a term, or none since a resume was asked for."""
        return self.visible is None or self.resuming

    @property
    def ended(self) -> bool:
        """The run has its final state and nobody asked to go on from it."""
        return self.written is not None and self.written.state.terminal and not self.resuming

    @property
    def signs(self) -> tuple[object, ...]:
        """Changes whenever somebody who lives wrote something."""
        written = self.written
        return (self.desired.revision, self.highest, self.visible, written and (written.sequence, written.updated_at, written.state))


class Verdict(Enum):
    AS_WRITTEN = auto()
    PENDING = auto()
    LOST = auto()
    DEAD = auto()
    """Certainly without an owner: the reader that finds this out closes the run."""
    UNSURE = auto()
    """Keep watching: only time tells."""


def judge(snapshot: Snapshot, owner: Owner, *, quiet_s: float, moved: bool) -> Verdict:
    """What to say of a run.

    `quiet_s`: for how long, on the reader's own monotonic clock, its signs have not changed; `moved`: whether they
    ever did since this reader began to watch.
    """
    if snapshot.ended:
        return Verdict.AS_WRITTEN
    if owner is Owner.GONE:
        return Verdict.UNSURE if snapshot.pending and quiet_s < LAUNCH_GRACE_S else Verdict.DEAD
    if snapshot.pending:
        return Verdict.PENDING
    if owner is Owner.ALIVE:
        return Verdict.AS_WRITTEN
    if quiet_s >= LEASE_S:
        return Verdict.LOST
    return Verdict.AS_WRITTEN if moved else Verdict.UNSURE


def read_snapshot(run: RunStore) -> Snapshot:
    """Raises StoreDamaged when the run's record is not whole."""
    desired = run.desired()
    if desired is None:
        raise StoreDamaged("the record of this run is not whole: it holds no desired state", where=run.uri)
    highest, bases = run.terms()
    visible = max(bases, default=None)
    return Snapshot(desired, highest, bases, run.status(visible) if visible is not None else None)


def as_written(snapshot: Snapshot, name: str, run_id: str) -> RunStatus:
    """The status of the visible term; STARTING where its holder has not written one yet."""
    if snapshot.written is not None:
        return snapshot.written
    return RunStatus(run_id=run_id, name=name, state=JobState.STARTING, term=snapshot.visible or 0, workers=snapshot.desired.workers)


def as_pending(snapshot: Snapshot, name: str, run_id: str, reason: str) -> RunStatus:
    """The status of a run whose controller has not begun its term yet; `reason` says what it waits for."""
    if snapshot.written is None:
        blank = RunStatus(
            run_id=run_id, name=name, state=JobState.PENDING, workers=snapshot.desired.workers, submitted_at=snapshot.desired.at
        )
        return replace(blank, reason=reason, updated_at=snapshot.desired.at)
    return replace(
        snapshot.written,
        state=JobState.PENDING,
        reason=reason,
        workers=snapshot.desired.workers,
        world_size=0,
        members=(),
        waiting_for="",
        draining=(),
        stragglers=(),
        ended_at=None,
        exit_code=None,
        dashboard="",
    )


def as_lost(snapshot: Snapshot, name: str, run_id: str) -> RunStatus:
    """The status of a run without a sign of life, whose processes this machine cannot see."""
    written = as_written(snapshot, name, run_id)
    reason = (
        f"no sign of life for {LEASE_S:.0f} s, and this machine cannot see its processes; last one at {written.updated_at or 'no time'}. "
        f"`launch resume {name}` takes it over, `launch stop {name}` closes it"
    )
    return replace(written, state=JobState.LOST, reason=reason)
