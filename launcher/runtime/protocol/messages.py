"""The protocol's orders as messages to workers: short ones, whatever the size of the group. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.core.types import JsonObject, WorkerId
from launcher.runtime.protocol import coordinator as m

Order = m.Prepare | m.Commit | m.Withdraw | m.Leave | m.Stop | m.Release


def messages(order: Order) -> Iterator[tuple[WorkerId, JsonObject]]:
    """To whom, and what. A worker is told its own place and, where state moves, those it deals with; never who else is in.

    What is the same for several is one object: it is put into words once.
    """
    match order:
        case m.Prepare(formation, _, to, leave):
            ranks = {worker: rank for rank, worker in enumerate(formation.ranks)}
            shape: JsonObject = {"kind": "prepare", "generation": formation.generation, "world_size": len(formation.ranks), "leave": leave}
            for worker in to:
                yield worker, {**shape, "rank": ranks.get(worker)}
        case m.Commit():
            yield from _commit(order)
        case m.Withdraw(generation, to) | m.Leave(generation, to):
            kind = "withdraw" if isinstance(order, m.Withdraw) else "leave"
            message: JsonObject = {"kind": kind, "generation": generation}
            for worker in to:
                yield worker, message
        case m.Stop(to) | m.Release(to):
            kind = "stop" if isinstance(order, m.Stop) else "release"
            message = {"kind": kind}
            for worker in to:
                yield worker, message


def _commit(commit: m.Commit) -> Iterator[tuple[WorkerId, JsonObject]]:
    ranks = {worker: rank for rank, worker in enumerate(commit.formation.ranks)}
    moving = {*commit.donors, *commit.receivers}
    shape: JsonObject = {
        "kind": "commit",
        "generation": commit.formation.generation,
        "step": commit.step,
        "again": commit.again,
        "hold": commit.hold,
        "save": commit.save,
        "donors": [],
        "receivers": [],
    }
    dealing: JsonObject = {**shape, "donors": [*commit.donors], "receivers": [*commit.receivers]}
    for worker in commit.to:
        yield worker, dealing if ranks.get(worker) in moving else shape
