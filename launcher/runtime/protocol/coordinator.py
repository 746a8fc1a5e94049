"""The generation protocol, the controller's side: an event in, actions out. Pure: it neither acts, waits nor reads a clock.

docs/protocol.md has the protocol and what it assumes; participant.py is the worker's side. What is known stands in group.py. Here is which
part of the protocol an event concerns, and how a planned change begins; forming.py has how a generation is formed, recovery.py what follows
a loss, ending.py how a run ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import ending, forming, recovery
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.events import NONE
from launcher.runtime.protocol.group import START, Group, Peer, Phase


class Coordinator:
    """One term's worker group. `handle` each event in turn and carry out what comes back, in order."""

    def __init__(
        self, *, minimum: int, load: bool, checkpoint: Step | None = None, recorded: Step = START, generation: Generation = NONE
    ) -> None:
        """See Group."""
        self.group = Group(minimum=minimum, load=load, checkpoint=checkpoint, recorded=recorded, generation=generation)

    def handle(self, event: e.Event) -> list[e.Action]:
        group = self.group
        if group.phase is Phase.ENDED:
            return []
        match event:  # what all workers say comes first: it is most of what is heard
            case e.Applied(worker, generation, step):
                _applied(group, worker, generation, step)
                return []
            case e.Prepared(worker, generation):
                return forming.acknowledge(group, worker, generation) if worker in group.peers else []
            case e.Formed(worker, generation, step):
                actions = forming.formed(group, worker, generation, step) if worker in group.peers else []
                return [*actions, *ending.finish(group)] if actions else []
            case e.Left(worker, generation, applied):
                return recovery.left(group, worker, generation, applied) if worker in group.peers else []
            case e.Ended() | e.Gone() | e.SaveDecided() | e.StopWanted():
                actions = self._towards_the_end(event)
                return [*actions, *ending.finish(group)]
            case e.Started() | e.Ready() | e.Loaded() | e.Corrupt():
                return _before_training(group, event)
            case e.ChangeWanted():
                return _change(group, event)
            case e.Refused(worker, generation, detail):
                return _refused(group, worker, generation, detail) if worker in group.peers else []
            case e.Expired(generation):
                return _expired(group, generation)
            case e.Stuck(reason):
                return recovery.stuck(group, reason)
            case e.SaveStarted(step, generation):
                group.saving.add((step, generation))
                return []
            case e.Failed(reason, exit_code):
                return ending.fail(group, reason, exit_code)

    def _towards_the_end(self, event: e.Ended | e.Gone | e.SaveDecided | e.StopWanted) -> list[e.Action]:
        """What may be the last thing that a run waited for."""
        group = self.group
        match event:
            case e.Ended(worker, generation, outcome) if worker in group.peers:
                peer = group.peers[worker]
                if peer.outcome is None or generation >= peer.outcome[0]:
                    peer.outcome = (generation, outcome)
            case e.Gone(worker, reason, cause) if worker in group.peers:
                return recovery.gone(group, worker, cause, reason)
            case e.SaveDecided(step, failure, generation):
                group.saving.discard((step, generation))
                if not failure:
                    group.saved, group.last_saves = max(group.saved, step), 0
                elif step >= group.unsaved[0]:
                    group.unsaved = (step, failure)
            case e.StopWanted():
                return ending.stop(group)
        return []

    def adopt(self, found: Iterable[e.WorkerState]) -> list[e.Action]:
        """The workers that a new controller takes over, at least one of which holds the state."""
        actions = recovery.adopt(self.group, found)
        return [*actions, *ending.finish(self.group)]

    def outstanding(self) -> list[e.Action]:
        """Orders that were not answered yet, to be said again: each may be carried out any number of times."""
        group = self.group
        if group.phase is Phase.LEAVING:
            return recovery.outstanding_to_leave(group)
        proposal = group.proposal
        if proposal is None and group.load and group.phase is Phase.ASSEMBLING:
            unloaded = tuple(worker for worker, peer in group.peers.items() if peer.ready and peer.applied is None)
            return [e.Load(unloaded)] if unloaded else []
        if proposal is None or not proposal.missing:
            return []
        to = tuple(worker for worker in proposal.everybody if worker in proposal.missing)
        if proposal.committed is None:
            return [e.Prepare(proposal.formation, proposal.leaving, to)]
        return [replace(proposal.committed, to=to)]


def _applied(group: Group, worker: WorkerId, generation: Generation, step: Step) -> None:
    peer = group.peers.get(worker)
    if peer is not None and generation == peer.generation and peer.applied is not None and step > peer.applied:
        peer.applied = step


def _before_training(group: Group, event: e.Started | e.Ready | e.Loaded | e.Corrupt) -> list[e.Action]:
    """A worker starts, warms up and, where the term begins on a checkpoint, loads it."""
    if isinstance(event, e.Started):
        group.peers.setdefault(event.worker, Peer())
        return []
    peer = group.peers.get(event.worker)
    if peer is None:
        return []
    assembling = group.phase is Phase.ASSEMBLING
    match event:
        case e.Ready(worker):
            first, peer.ready = not peer.ready, True
            return [e.Load((worker,))] if first and group.load and assembling else []
        case e.Loaded(_, step) if assembling and step == (group.checkpoint or START):
            peer.applied = step
        case e.Loaded(worker, step) if assembling and not group.load:
            return [e.Evict(worker, f"it loaded the checkpoint of step {step}, and this term begins without one")]
        case e.Loaded():
            pass  # of an earlier term's checkpoint: `outstanding` says again which one is meant
        case e.Corrupt(_, detail) if assembling:
            return [e.RollBack(group.checkpoint or START, detail)]
    return []


def _change(group: Group, wanted: e.ChangeWanted) -> list[e.Action]:
    if not group.settled or group.done:
        return []
    before = group.current.ranks if group.current is not None else ()
    join = tuple(
        worker for worker in wanted.join if worker not in before and (peer := group.peers.get(worker)) is not None and group.may_join(peer)
    )
    leaving = set(wanted.leave).intersection(before)
    if len(leaving) == len(before):
        leaving = set()  # whoever holds the state hands it over first, and leaves with the next change
    leave = tuple(worker for worker in before if worker in leaving)
    ranks = (*(worker for worker in before if worker not in leaving), *join)
    changes_nothing = not join and not leave and bool(before) and not group.held and not wanted.hold
    if not ranks or changes_nothing:
        return []
    hold = wanted.hold or len(ranks) < group.minimum
    return forming.propose(group, ranks, leave, planned=True, cause=wanted.cause, reason=wanted.reason, hold=hold)


def _refused(group: Group, worker: WorkerId, generation: Generation, detail: str) -> list[e.Action]:
    """A worker could not connect to the others."""
    proposal = group.proposal
    if proposal is None or proposal.committed is not None or proposal.formation.generation != generation:
        return []
    if not proposal.planned:
        return recovery.try_again(group, worker, detail)
    before = group.current.ranks if group.current is not None else ()
    group.attempts += 1
    blamed = [worker] if worker not in before else []
    if not blamed and group.attempts >= recovery.ATTEMPTS:
        blamed = [worker for worker in proposal.formation.ranks if worker not in before]
    evicted = (e.Evict(worker, f"it and the others could not connect: {detail}") for worker in blamed)
    return [*forming.withdraw(group), *evicted]


def _expired(group: Group, generation: Generation) -> list[e.Action]:
    """A generation was not acknowledged by all in time."""
    proposal = group.proposal
    if proposal is None or proposal.committed is not None or proposal.formation.generation != generation:
        return []
    if group.phase is Phase.LEAVING:
        group.proposal = None  # whoever does not come out is evicted; then the others begin anew
        return []
    late = [worker for worker in proposal.everybody if worker in proposal.missing]
    if not proposal.planned:
        return recovery.try_again(group, late[-1], "it did not connect in time")
    before = group.current.ranks if group.current is not None else ()
    group.attempts += 1
    newcomers = [worker for worker in late if worker not in before]
    blamed = newcomers or (late if group.attempts >= recovery.ATTEMPTS else [])
    return [*forming.withdraw(group), *(e.Evict(worker, "it did not connect to the others in time") for worker in blamed)]
