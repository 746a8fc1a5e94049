"""After a loss: all members leave their collectives, so that what each one holds is certain; then the survivors form the next generation. Pure.

Also a new controller begins with it where it finds the group in the middle of a change (`adopt`).
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol.events import (
    NONE,
    AbandonSaves,
    Action,
    AllLost,
    Evict,
    Formation,
    Leave,
    Outcome,
    Prepare,
    Withdraw,
    WorkerState,
)
from launcher.runtime.protocol.forming import all_acknowledged, commit, propose, withdraw
from launcher.runtime.protocol.group import Group, Peer, Phase

ATTEMPTS = 3
"""So often the same survivors try to form a generation before the one that comes last is evicted."""


def gone(group: Group, worker: WorkerId, cause: str, reason: str) -> list[Action]:
    """A worker is dead, or was evicted."""
    peer = group.peers.pop(worker)
    if group.phase is Phase.LEAVING:
        return _gone_while_leaving(group, worker)
    inside = group.current is not None and worker in group.current.ranks
    if inside and peer.outcome is not None and peer.outcome[0] == group.generation and peer.outcome[1] is not Outcome.HELD:
        group.done[worker] = peer.outcome[1]
        return []
    proposal = group.proposal
    if proposal is not None and worker in proposal.everybody:
        if proposal.committed is None and proposal.planned and not inside:
            return withdraw(group)
        return recover(group, cause, reason, at_once=proposal.committed is None)
    return recover(group, cause, reason, at_once=True) if inside else []


def _gone_while_leaving(group: Group, worker: WorkerId) -> list[Action]:
    group.unanswered.discard(worker)
    if group.proposal is not None and worker in group.proposal.formation.ranks:
        group.proposal = None
    return _reform(group) if not group.unanswered else []


def recover(group: Group, cause: str, reason: str, *, at_once: bool = False) -> list[Action]:
    """Let all out.

    `at_once`: the members of the present generation connect to each other while they leave it: all of them hold its state, and
    the one that was lost is known.
    """
    members = group.current.ranks if at_once and group.current is not None else ()
    involved = dict.fromkeys((*group.ranks, *(group.proposal.everybody if group.proposal is not None else ())))
    living = tuple(worker for worker in involved if worker in group.peers)
    group.survivors = living
    group.unanswered = set(living)
    group.save_again = group.save_again or bool(group.saving)
    group.cause = (cause, reason)
    group.left_up_to = group.number
    group.current, group.proposal, group.phase, group.held, group.done = None, None, Phase.LEAVING, False, {}
    abandon = AbandonSaves(group.number)
    if not living:
        return [abandon, *_reform(group)]
    staying = tuple(worker for worker in members if worker in group.peers)
    if not staying:
        return [abandon, Leave(group.number, living)]
    others = tuple(worker for worker in living if worker not in set(staying))
    leave = [Leave(group.number, others)] if others else []
    regroup = propose(group, staying, planned=False, cause=cause, reason=reason, hold=False, leave=True)
    return [abandon, *leave, *regroup]


def try_again(group: Group, worker: WorkerId, detail: str) -> list[Action]:
    """The survivors could not form a generation; `worker` is the one that is evicted when they fail too often."""
    group.attempts += 1
    actions = recover(group, *group.cause)
    if group.attempts < ATTEMPTS:
        return actions
    group.attempts = 0
    return [*actions, Evict(worker, f"the survivors cannot connect to it: {detail}")]


def left(group: Group, worker: WorkerId, generation: Generation, applied: Step | None) -> list[Action]:
    """A worker is out of every generation up to this one."""
    peer = group.peers[worker]
    if group.phase is Phase.LEAVING:
        if worker not in group.unanswered or generation < group.left_up_to:
            return []
        peer.applied = applied
        group.unanswered.discard(worker)
        return _reform(group) if not group.unanswered else []
    proposal = group.proposal
    if proposal is not None and worker in proposal.leaving and proposal.committed is not None:
        peer.applied = applied
        proposal.missing.discard(worker)
        return []
    broke = generation == group.generation or group.is_committed(generation)
    return recover(group, "lost", f"worker {worker} lost its connection to the others") if broke else []


def stuck(group: Group, reason: str) -> list[Action]:
    """Nothing moves in the collective in which all wait: a step's, or the one that shares the state of a committed generation."""
    forming = group.phase is Phase.FORMING and group.proposal is not None and group.proposal.committed is not None
    return recover(group, "stuck", reason) if forming or group.phase is Phase.TRAINING else []


def _reform(group: Group) -> list[Action]:
    """All have answered, or are gone."""
    holders = [worker for worker in group.survivors if worker in group.peers and group.peers[worker].applied is not None]
    cause, reason = group.cause
    if max((group.applied(worker) for worker in holders), default=-1) < max(group.committed, group.saved):
        group.proposal = None
        return [AllLost(reason)]  # also where a newcomer holds what it loaded: that is behind what the run has
    group.phase = Phase.FORMING
    hold = len(holders) < group.minimum and not group.stopping
    begun = group.proposal
    if begun is not None and begun.formation.ranks == tuple(holders):
        begun.hold = hold
        return commit(group, begun) if all_acknowledged(begun) else []
    return propose(group, holders, planned=False, cause=cause, reason=reason, hold=hold)


def outstanding_to_leave(group: Group) -> list[Action]:
    """What was asked of those who leave, to be said again to those that have not answered."""
    ranks = dict.fromkeys(group.proposal.formation.ranks if group.proposal is not None else ())
    others = tuple(worker for worker in group.awaited if worker not in ranks)
    actions: list[Action] = [Leave(group.left_up_to, others)] if others else []
    if group.proposal is not None:
        to = tuple(worker for worker in ranks if worker in group.unanswered or worker in group.proposal.missing)
        actions += [Prepare(group.proposal.formation, (), to, leave=True)] if to else []
    return actions


def adopt(group: Group, found: Iterable[WorkerState]) -> list[Action]:
    """Take over the workers that a new controller finds, at least one of which holds the state.

    They go on as they are if all members of one generation are there, nobody else holds a state or was ever called into a
    generation, and nobody was told that a change is committed. Otherwise what each one holds, and where it waits, is not
    certain, and all are let out.
    """
    known = list(found)
    for each in known:
        outcome = (each.generation, each.outcome) if each.outcome is not None else None
        group.peers[each.worker] = Peer(each.ready, each.applied, each.generation, outcome)
        group.number = max(group.number, each.generation, each.pending or NONE)
    holders = sorted((each for each in known if each.applied is not None), key=lambda each: (-each.generation, each.rank))
    inside = [each for each in holders if each.inside and each.generation == holders[0].generation]
    whole = bool(inside) and [each.rank for each in inside] == list(range(inside[0].world_size))
    others = any(each.applied is not None or each.generation for each in known if each not in inside)
    group.phase = Phase.TRAINING
    if not whole or others or any(each.knows_commit for each in known):
        called = (each for each in known if each.applied is None and (each.generation or each.pending))
        group.survivors = tuple(each.worker for each in (*holders, *called))
        return recover(group, "adopted", "a new controller found the group in the middle of a change")
    group.current = Formation(inside[0].generation, tuple(each.worker for each in inside))
    pending = tuple(each.worker for each in known if each.pending is not None)
    return [Withdraw(group.number, pending)] if pending else []
