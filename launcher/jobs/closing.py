"""Closing a run that nobody works on: claim the next term, look again, write the final status, make it visible.

The status is written before the base, so that the closing term is never visible without it. Two closers, or a
controller that takes over meanwhile, race for the term: the one that does not hold the highest term when it looks leaves
its claim without a base, which readers skip.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.checkpoint.catalog import list_checkpoints
from launcher.core.clock import Clock, timestamp
from launcher.core.types import Generation, Step, Term
from launcher.jobs.refs import RunRef, person
from launcher.jobs.snapshot import Snapshot, as_written
from launcher.record.events import Ended, RecordedEvent, decode, encode
from launcher.record.lineage import TermBase, lineage
from launcher.record.run_store import RunStore
from launcher.record.status import CheckpointRef, JobState, RunStatus, exit_code_of


def close(ref: RunRef, run: RunStore, snapshot: Snapshot, *, state: JobState, reason: str, clock: Clock) -> bool:
    """End the run in `state`, on the ground of a snapshot that showed no owner; False when somebody was faster: look again."""
    term = Term(snapshot.highest + 1)
    if not run.claim_just(term, f"closed by {person()}", timestamp(clock.now())):
        return False
    highest, bases = run.terms()
    visible = max(bases, default=None)
    if highest > term or visible != snapshot.visible:
        return False
    checkpoints = list_checkpoints(run, lineage(bases))
    newest = checkpoints[0] if checkpoints else None
    written = as_written(snapshot, ref.name, ref.run_id)
    step = max(written.step, newest.step if newest else 0, _durable_step(run, visible))
    final = _final(ref, run, snapshot, written, term=term, step=step, state=state, reason=reason, clock=clock)
    if newest is not None:
        final = replace(final, checkpoint=CheckpointRef(step=newest.step, uri=f"{run.uri}/{newest.key}"))
    run.put_status(term, final)
    ended = Ended(state=state, reason=reason, by=person())
    recorded = RecordedEvent(time=timestamp(clock.now()), term=term, generation=Generation(final.generation), step=Step(step), event=ended)
    run.put_segment("events", term, 1, [encode(recorded)])
    return run.create_base(term, TermBase(from_term=visible, checkpoint_step=None, adopted_step=Step(step) if step else None))


def _final(
    ref: RunRef, run: RunStore, snapshot: Snapshot, written: RunStatus, *, term: Term, step: int, state: JobState, reason: str, clock: Clock
) -> RunStatus:
    now = timestamp(clock.now())
    return replace(
        written,
        run_id=ref.run_id,
        name=ref.name,
        state=state,
        reason=reason,
        term=term,
        step=step,
        members=(),
        waiting_for="",
        draining=(),
        stragglers=(),
        dashboard="",
        submitted_at=written.submitted_at or snapshot.desired.at,
        # nobody saw the end: the last sign of life is nearer to it than now
        ended_at=now if snapshot.pending or not written.updated_at else written.updated_at,
        updated_at=now,
        sequence=1,
        exit_code=int(exit_code_of(state)),
    )


def _durable_step(run: RunStore, term: Term | None) -> int:
    """The last committed step that the term's events tell of; a status may be older than they are."""
    names = [name for segment_term, _, name in run.segments("events") if segment_term == term]
    if not names:
        return 0
    where = f"{run.uri}/events/{names[-1]}"
    return max((decode(document, where=where).step for document in run.segment("events", names[-1])), default=0)
