"""One guard taken away at a time: what the invariants are worth is that some seed then fails, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from launcher.core.types import Step, Term
from launcher.record.run_store import RunStore
from launcher.runtime.controller import takeover
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.dispatcher import Dispatcher
from launcher.runtime.controller.executor import Executor
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.protocol import forming, recovery
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.group import Group, Proposal
from launcher.runtime.protocol.participant import Participant
from launcher.runtime.records.inheritance import inherit
from tests.simulation.network import Connection, Server
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
ONE_STATE = frozenset({"a checkpoint is of one state"})

_received, _attach = Dispatcher._received, Worker.attach


def _hears_everybody(self: Dispatcher, worker: Any, message: m.ToController) -> list[Any]:
    if worker in self._registry or not isinstance(message, (m.Row, m.Saved, m.SaveFailed)):
        return _received(self, worker, message)
    return self._heard(worker, message)


def _receives_from_everybody(self: Server, link: Connection, message: m.ToController) -> None:
    """Also what was on its way when the connection was closed."""
    if isinstance(message, m.Hello):
        self._take_in(link)
    else:
        self._controller.hears(link.worker.name, message)


def _ends_nobody(self: Executor, workers: Any) -> None:
    """They are evicted, and neither ended nor cut off."""


def _ends_in_any_case(self: Executor, workers: Any) -> None:
    for worker in workers:
        self._server.drop(worker)
    self._workers.end(list(workers))


def _obeys_anybody(self: Worker, link: Connection) -> bool:
    return link.worker is self


def _attached_by_anybody(self: Worker, term: Term, controller: Any) -> Any:
    if term < self.term:
        self.term = Term(0)
    return _attach(self, term, controller)


def _look_then_claim(run: RunStore, holder: str, at: str) -> Any:
    left = inherit(run)
    return run.claim_term(holder, at), left


def _manifest_first(self: CheckpointCommitter, save: Save) -> None:
    self._commit(save)
    self._recorder.flush(ledger=True)


def _all_acknowledged(proposal: Proposal) -> bool:
    return True


def _holders(group: Group, proposal: Proposal) -> list[tuple[int, int]]:
    """Steps and ranks of those that hold a state."""
    peers = group.peers
    return [(int(peers[each].applied or 0), rank) for rank, each in enumerate(proposal.formation.ranks) if peers[each].applied is not None]


def _instead(choose: Callable[[list[tuple[int, int]]], tuple[int, int]]) -> tuple[tuple[Any, str, Any], ...]:
    step_to_share, holding = forming.step_to_share, forming.holding

    def chosen_step(group: Group, proposal: Proposal) -> Step | None:
        step = step_to_share(group, proposal)
        return step if step is None or not _holders(group, proposal) else Step(choose(_holders(group, proposal))[0])

    def chosen_holder(group: Group, proposal: Proposal, step: Step | None) -> tuple[int, ...]:
        if step is None or not _holders(group, proposal):
            return holding(group, proposal, step)
        return (choose(_holders(group, proposal))[1],)

    return (forming, "step_to_share", chosen_step), (forming, "holding", chosen_holder)


def _done_unless_void(self: CheckpointCommitter, save: Save) -> bool:
    """What can never be whole is waited for."""
    return save in self._done or save.step < self._start or (save.step in self._steps and save not in self._pending())


MUTATIONS = (
    Mutation(
        "fencing: who was evicted is heard",
        ((Dispatcher, "_received", _hears_everybody), (Server, "received", _receives_from_everybody)),
        ONE_LINE | KEPT | STORED | ONE_STATE,
    ),
    Mutation(
        "fencing: who was evicted is neither cut off nor ended",
        ((Dispatcher, "_received", _hears_everybody), (Executor, "_end", _ends_nobody)),
        ONE_LINE | KEPT | STORED | ONE_STATE,
    ),
    Mutation(
        "fencing: workers are ended without a look for a higher term",
        ((Executor, "_end", _ends_in_any_case),),
        frozenset({"only who leads ends workers"}),
    ),
    Mutation(
        "fencing: a new term takes over whoever lives",
        ((takeover, "adoptable", lambda left, found: list(found)),),
        ONE_LINE | KEPT | STORED,
    ),
    Mutation(
        "fencing: a lower term is obeyed",
        ((Worker, "listens_to", _obeys_anybody), (Worker, "attach", _attached_by_anybody)),
        frozenset({"no lower term is obeyed"}),
    ),
    Mutation(
        "fencing: a deposed controller does not look",
        ((Leadership, "check", lambda self: True),),
        ONE_LINE | KEPT | STORED | {"one final state", "only who leads ends workers"},
    ),
    Mutation(
        "acknowledgement",
        ((forming, "all_acknowledged", _all_acknowledged), (recovery, "all_acknowledged", _all_acknowledged)),
        frozenset({"entered only what all acknowledged"}),
    ),
    Mutation(
        "commit phase",
        ((Participant, "_knows_commit", lambda self: self.pending is not None),),
        frozenset({"left only for what is committed"}),
    ),
    Mutation("most advanced donor: the first", _instead(lambda holders: holders[0]), KEPT | {"applied never goes back in a term"}),
    Mutation("most advanced donor: the least", _instead(min), KEPT | {"applied never goes back in a term"}),
    Mutation("claim before base", ((takeover, "claim_and_look", _look_then_claim),), ONE_LINE | KEPT | STORED | {"one final state"}),
    Mutation(
        "durable events before the manifest",
        ((CheckpointCommitter, "_flush_then_commit", _manifest_first),),
        frozenset({"the ledger is durable before the manifest"}),
    ),
    Mutation(
        "checkpoints: of a generation that has lost a member",
        ((CheckpointCommitter, "done", _done_unless_void),),
        frozenset({"nobody waits for ever"}),
    ),
)
