"""How a run ends: everybody came to the end, a person stopped it, or it failed; and what has to be saved before. Pure."""

from __future__ import annotations

from launcher.core.exit_codes import ExitCode
from launcher.core.types import WorkerId
from launcher.record.status import JobState
from launcher.runtime.protocol.events import Action, Leave, Outcome, Stop
from launcher.runtime.protocol.group import Group, Phase
from launcher.runtime.protocol.recovery import ATTEMPTS, recover


def stop(group: Group) -> list[Action]:
    """A person wants the run to stop."""
    if group.stopping:
        return []
    group.stopping = True
    if group.phase is Phase.ASSEMBLING and group.proposal is None:
        return group.stop_before_training()
    return [Stop(tuple(group.peers))]


def fail(group: Group, reason: str, exit_code: ExitCode) -> list[Action]:
    """Break off: whoever is in a collective is let out."""
    return [Leave(group.number, tuple(group.peers)), *group.end(JobState.FAILED, reason, exit_code)]


def finish(group: Group) -> list[Action]:
    """The end, if every member of the present generation has come to it and no checkpoint is on its way."""
    outcomes = _outcomes(group)
    if outcomes is None:
        return []
    if Outcome.HELD in outcomes:
        group.held = True
        return group.end(JobState.STOPPED, "stopped on request", ExitCode.STOPPED) if group.stopping else []
    step, failure = group.unsaved
    if step > group.saved and (group.done or group.last_saves < ATTEMPTS):
        # Whoever is left has all of the state. A part may have gone with the member that had it: then the store is not to blame.
        group.last_saves += not group.done
        group.save_again = True
        return recover(group, "save", f"the last checkpoint could not be saved: {failure}")
    if step > group.saved:
        return group.end(JobState.FAILED, f"the last checkpoint could not be saved: {failure}", ExitCode.INFRASTRUCTURE)
    if outcomes == {Outcome.FINISHED}:
        return group.end(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)
    return group.end(JobState.STOPPED, "stopped on request", ExitCode.STOPPED)


def _outcomes(group: Group) -> set[Outcome] | None:
    """How the members of the present generation ended; None while one has not, or the last checkpoint is not decided."""
    if group.current is None or group.phase is not Phase.TRAINING or group.saving:
        return None
    ranks = group.current.ranks
    while group.ended_below < len(ranks):
        worker = ranks[group.ended_below]
        if worker in group.peers and _outcome(group, worker) is None:
            return None
        group.ended_below += 1
    outcomes = [_outcome(group, worker) for worker in ranks if worker in group.peers]
    known = {outcome for outcome in outcomes if outcome is not None}
    # Who had ended here may have come to the end of the next generation already.
    return known | set(group.done.values()) if None not in outcomes else None


def _outcome(group: Group, worker: WorkerId) -> Outcome | None:
    """How it ended in the present generation; a member may be at the end of the next one, which others will never form, already."""
    outcome = group.peers[worker].outcome
    if outcome is None:
        return None
    generation, how = outcome
    here = generation == group.generation or (group.is_committed(generation) and how is not Outcome.HELD)
    return how if here else None
