"""The coordinator's orders as messages to workers: short ones, whatever the size of the group. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.core.types import WorkerId
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m

Order = e.Prepare | e.Commit | e.Withdraw | e.Leave | e.Stop | e.Release


def messages_of(order: Order) -> Iterator[tuple[WorkerId, m.ToWorker]]:
    """To whom, and what. A worker is told its own place and, where state moves, those it deals with; never who else is in.

    What is the same for several is one object, so that the transport encodes it once.
    """
    match order:
        case e.Prepare(formation, _, to, leave):
            ranks = {worker: rank for rank, worker in enumerate(formation.ranks)}
            for worker in to:
                yield worker, m.Prepare(formation.generation, ranks.get(worker), len(formation.ranks), leave)
        case e.Commit():
            yield from _commit(order)
        case e.Withdraw(generation, to):
            yield from _same(m.Withdraw(generation), to)
        case e.Leave(generation, to):
            yield from _same(m.Leave(generation), to)
        case e.Stop(to):
            yield from _same(m.Stop(), to)
        case e.Release(to):
            yield from _same(m.Release(), to)


def _same(message: m.ToWorker, to: Sequence[WorkerId]) -> Iterator[tuple[WorkerId, m.ToWorker]]:
    return ((worker, message) for worker in to)


def _commit(commit: e.Commit) -> Iterator[tuple[WorkerId, m.ToWorker]]:
    ranks = {worker: rank for rank, worker in enumerate(commit.formation.ranks)}
    moving = {*commit.donors, *commit.receivers}
    facts = (commit.formation.generation, commit.step, commit.again, commit.hold, commit.save)
    apart, dealing = m.Commit(*facts, (), ()), m.Commit(*facts, commit.donors, commit.receivers)
    for worker in commit.to:
        yield worker, dealing if ranks.get(worker) in moving else apart
