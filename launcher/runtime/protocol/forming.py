"""How a generation comes to be, planned or after a loss: prepare, acknowledge, commit, form; or withdraw. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol.events import Action, Changed, Commit, Formation, Prepare, Release, Withdraw
from launcher.runtime.protocol.group import START, Group, Phase, Proposal

DONORS = 8
"""So many at the most send the state in one change: enough to fill a receiver's connection, and orders stay short."""


def propose(
    group: Group,
    ranks: Sequence[WorkerId],
    leaving: tuple[WorkerId, ...] = (),
    *,
    planned: bool,
    cause: str,
    reason: str,
    hold: bool,
    leave: bool = False,
) -> list[Action]:
    """Prepare the next generation. `leave`: its members leave what was before at once, and do not wait for that to be done."""
    group.number = Generation(group.number + 1)
    formation = Formation(group.number, tuple(ranks))
    group.proposal = proposal = Proposal(formation, leaving, planned, cause, reason, hold)
    proposal.missing = set(proposal.everybody)
    return [Prepare(formation, leaving, proposal.everybody, leave)]


def acknowledge(group: Group, worker: WorkerId, generation: Generation) -> list[Action]:
    """A worker is connected. Once all are, the generation is committed; while members still leave, that waits for them."""
    proposal = group.proposal
    if proposal is None or proposal.committed is not None or proposal.formation.generation != generation:
        return []
    proposal.missing.discard(worker)
    return commit(group, proposal) if all_acknowledged(proposal) and group.phase is not Phase.LEAVING else []


def all_acknowledged(proposal: Proposal) -> bool:
    return not proposal.missing


def commit(group: Group, proposal: Proposal) -> list[Action]:
    """Irrevocable from here on: who sends the state, who receives it, and of which step it is."""
    step = step_to_share(group, proposal)
    holders = holding(group, proposal, step)
    others = set(range(len(proposal.formation.ranks))).difference(holders)
    save, group.save_again = group.save_again, False
    proposal.committed = Commit(
        proposal.formation,
        proposal.leaving,
        donors=_spread(holders, DONORS),
        receivers=tuple(sorted(others)),
        step=step,
        again=not proposal.planned,
        hold=proposal.hold,
        save=save,
        to=proposal.everybody,
    )
    proposal.missing = set(proposal.everybody)
    return [proposal.committed]


def step_to_share(group: Group, proposal: Proposal) -> Step | None:
    """The most advanced survivor has it; nobody knows it yet where the present generation goes on."""
    if group.current is not None and not group.held:
        return None
    return max((Step(group.applied(worker)) for worker in proposal.formation.ranks), default=START)


def holding(group: Group, proposal: Proposal, step: Step | None) -> tuple[int, ...]:
    """All ranks that hold the state of `step`; some of them send it."""
    ranks = proposal.formation.ranks
    if group.current is not None and not group.held:
        members = set(group.current.ranks)
        return tuple(rank for rank, worker in enumerate(ranks) if worker in members)
    holders = tuple(rank for rank, worker in enumerate(ranks) if group.peers[worker].applied == step)
    return holders or (0,)  # a fresh start: everybody takes what the first one built


def formed(group: Group, worker: WorkerId, generation: Generation, step: Step) -> list[Action]:
    """A member holds the state of the committed generation. Once all do, that generation is the present one."""
    proposal = group.proposal
    if proposal is None or not group.is_committed(generation):
        return []
    peer = group.peers[worker]
    peer.applied = step if peer.generation != generation or peer.applied is None else max(peer.applied, step)
    peer.generation = generation
    proposal.step = step
    proposal.missing.discard(worker)
    if len(proposal.missing) > len(proposal.leaving) or not proposal.missing.issubset(proposal.leaving):
        return []  # told by the number alone nearly always
    return _complete(group, proposal, step)


def _complete(group: Group, proposal: Proposal, step: Step) -> list[Action]:
    before = group.ranks
    group.current, group.proposal, group.phase = proposal.formation, None, Phase.TRAINING
    group.held, group.attempts, group.survivors, group.done, group.ended_below = False, 0, (), {}, 0
    group.formed_at.append((group.generation, step))
    gone = tuple(worker for worker in proposal.leaving if worker in group.peers)
    for worker in gone:
        del group.peers[worker]
    changed = Changed(proposal.formation, before, proposal.cause, proposal.reason, step, proposal.hold)
    return [changed, *([Release(gone)] if gone else [])]


def withdraw(group: Group) -> list[Action]:
    """The change under way, which is not committed, comes to nothing."""
    proposal, group.proposal = group.proposal, None
    assert proposal is not None
    living = tuple(worker for worker in proposal.everybody if worker in group.peers)
    stopped = group.stop_before_training() if group.stopping and group.phase is Phase.ASSEMBLING else []
    return [Withdraw(proposal.formation.generation, living), *stopped]


def _spread(ranks: tuple[int, ...], most: int) -> tuple[int, ...]:
    """`most` of them, evenly: neighbours in rank share a node's connection."""
    return ranks if len(ranks) <= most else tuple(ranks[index * len(ranks) // most] for index in range(most))
