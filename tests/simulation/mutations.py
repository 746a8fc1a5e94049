"""One guard of the protocol taken away at a time: what the invariants are worth is that some seed then fails, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from launcher.core.types import Step
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.coordinator import Coordinator, Proposal
from launcher.runtime.protocol.participant import Participant
from launcher.runtime.records import inheritance as office
from tests.simulation.controller import Controller
from tests.simulation.network import Connection
from tests.simulation.schedule import play
from tests.simulation.worker import Worker


@dataclass(frozen=True)
class Mutation:
    name: str
    patches: tuple[tuple[Any, str, Any], ...]
    """Object, attribute, and what takes its place."""
    expected: frozenset[str]
    """The invariants that may notice."""


@dataclass(frozen=True)
class Finding:
    seed: int
    invariant: str


def first_failure(mutation: Mutation, seeds: Iterable[int]) -> Finding | None:
    """The first seed that fails with an invariant that fits; other failures (of the simulation's own sense) do not count."""
    patches = [patch.object(*each) for each in mutation.patches]
    for each in patches:
        each.start()
    try:
        for seed in seeds:
            result = play(seed)
            if result.invariant in mutation.expected:
                return Finding(seed, result.invariant)
        return None
    finally:
        for each in patches:
            each.stop()


ONE_LINE = frozenset({"one active generation", "one state in a step", "donors hold one state, that of the change"})
KEPT = frozenset(
    {"a committed step stays", "committed steps are one chain", "committed never goes back in a term", "a committed step is held by all"}
)
STORED = frozenset({"each step once, in order", "the ledger is one chain", "a checkpoint is of the lineage", "a reported checkpoint stays"})


def _heard_though_given_up(self: Controller, link: Connection) -> bool:
    return self.links.get(link.worker.name) is link


def _closed_but_listening(self: Controller, worker: Any, reason: str) -> None:
    """It is given up, and neither ended nor cut off."""
    self.cluster.check.gave_up(self, worker)


def _obeys_anybody(self: Worker, link: Connection) -> bool:
    return link.worker is self


def _attached_by_anybody(self: Worker, link: Connection) -> None:
    if link.term < self.term:
        self.term = 0
    _attach(self, link)


_attach = Worker.attach


def _look_then_claim(run: RunStore, holder: str, at: str) -> Any:
    left = office.inherit(run)
    return run.claim_term(holder, at), left


def _manifest_first(self: Controller, save: tuple[int, int]) -> None:
    self.saver.commit(save)
    self.recorder.flush(ledger=True, durable=self._durable_from_writer)


def _holders(membership: Coordinator, proposal: Proposal) -> list[tuple[int, int]]:
    """Steps and ranks of those that hold a state."""
    peers = membership.peers
    return [(int(peers[each].applied or 0), rank) for rank, each in enumerate(proposal.formation.ranks) if peers[each].applied is not None]


def _instead(choose: Callable[[list[tuple[int, int]]], tuple[int, int]]) -> tuple[tuple[Any, str, Any], ...]:
    step_to_share, donors = Coordinator._step_to_share, Coordinator._donors

    def chosen_step(self: Coordinator, proposal: Proposal) -> Step | None:
        step = step_to_share(self, proposal)
        return step if step is None or not _holders(self, proposal) else Step(choose(_holders(self, proposal))[0])

    def chosen_donors(self: Coordinator, proposal: Proposal, step: Step | None) -> tuple[int, ...]:
        return donors(self, proposal, step) if step is None or not _holders(self, proposal) else (choose(_holders(self, proposal))[1],)

    return (Coordinator, "_step_to_share", chosen_step), (Coordinator, "_donors", chosen_donors)


MUTATIONS = (
    Mutation(
        "fencing: who was given up is heard",
        ((Controller, "hears", _heard_though_given_up),),
        ONE_LINE | KEPT | STORED | {"a checkpoint is of one state"},
    ),
    Mutation(
        "fencing: who was given up is neither cut off nor ended",
        ((Controller, "hears", _heard_though_given_up), (Controller, "_close", _closed_but_listening)),
        ONE_LINE | KEPT | STORED | {"a checkpoint is of one state"},
    ),
    Mutation(
        "fencing: a new term takes over whoever lives",
        ((office, "adoptable", lambda left, found: list(found)),),
        ONE_LINE | KEPT | STORED,
    ),
    Mutation(
        "fencing: a lower term is obeyed",
        ((Worker, "listens_to", _obeys_anybody), (Worker, "attach", _attached_by_anybody)),
        frozenset({"no lower term is obeyed"}),
    ),
    Mutation(
        "fencing: a deposed controller does not look",
        ((Controller, "_check_office", lambda self: None), (Controller, "fence", lambda self: None)),
        ONE_LINE | KEPT | STORED | {"one final state"},
    ),
    Mutation(
        "acknowledgement",
        ((Coordinator, "_all_acknowledged", staticmethod(lambda proposal: True)),),
        frozenset({"entered only what all acknowledged"}),
    ),
    Mutation(
        "commit phase",
        ((Participant, "_knows_commit", lambda self: self.pending is not None),),
        frozenset({"left only for what is committed"}),
    ),
    Mutation("most advanced donor: the first", _instead(lambda holders: holders[0]), KEPT | {"applied never goes back in a term"}),
    Mutation("most advanced donor: the least", _instead(min), KEPT | {"applied never goes back in a term"}),
    Mutation("claim before base", ((office, "claim_and_look", _look_then_claim),), ONE_LINE | KEPT | STORED | {"one final state"}),
    Mutation(
        "durable events before the manifest",
        ((Controller, "_flush_then_commit", _manifest_first),),
        frozenset({"the ledger is durable before the manifest"}),
    ),
)
