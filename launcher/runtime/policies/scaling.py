"""The scaling policy: how the worker group stands -> which workers to offer, cancel, join and let go, with the reasons. Pure.

Offers stand up to the wanted size, so that capacity is taken as it comes. What a person asked for, and what a drain makes necessary, is
done at once; any other change has to pay for its pause within elastic.horizon_s and keeps elastic.cooldown_s of distance from the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.config.schema import ElasticConfig
from launcher.core.types import WorkerId
from launcher.runtime.policies.stragglers import Gain, Straggler, estimate_gain, find_stragglers
from launcher.runtime.policies.views import GroupView, MemberView

COALESCE_S = 10.0
"""How long the first ready worker waits for those that still warm up, so that they join in one change: one pause, not several."""
HOLD_LEAD_S = 10.0
"""What is left of a drain's deadline when a group that falls below workers.min stops training, to save a checkpoint in time."""
ASSUMED_PAUSE_S = 1.0
"""Of a change while none was measured: several times what is usual, so that the first is not made for a trifle."""
NAMED = 5


@dataclass(frozen=True)
class Offer:
    """Start so many workers more."""

    count: int
    reason: str


@dataclass(frozen=True)
class CancelOffers:
    """End these workers, which are no members; before the change of the same plan."""

    workers: tuple[WorkerId, ...]
    reason: str


@dataclass(frozen=True)
class Change:
    """The next generation: those who join get the highest ranks in this order. Both empty: a held group goes on as it is."""

    join: tuple[WorkerId, ...]
    leave: tuple[WorkerId, ...]
    reason: str


@dataclass(frozen=True)
class Hold:
    """Save a checkpoint with all members, let these go, and wait."""

    leave: tuple[WorkerId, ...]
    reason: str


Topic = Literal["changing", "settled", "capacity", "coalescing", "cooldown", "gain"]


@dataclass(frozen=True)
class Noop:
    """Why the membership stays; the figures in a reason move, so tell it again only when its topic is another."""

    topic: Topic
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScalingDecision:
    """To be carried out in this order."""

    cancel: CancelOffers | None = None
    offer: Offer | None = None
    membership: Change | Hold | Noop
    stragglers: tuple[Straggler, ...] = ()
    """The slowest first; told at every look as long as they are slow."""


def decide(view: GroupView, config: ElasticConfig) -> ScalingDecision:
    if view.changing:
        return ScalingDecision(membership=Noop("changing", "a change of the group is under way"))
    stragglers = find_stragglers(view.members, view.now)
    group = _Group(view, config, stragglers)
    membership = group.membership()
    offer = None if view.settling or isinstance(membership, Change | Hold) else group.offer()
    return ScalingDecision(cancel=group.cancel(), offer=offer, membership=membership, stragglers=stragglers)


class _Group:
    """A view of the group, sorted into who stays, who goes and who could come."""

    def __init__(self, view: GroupView, config: ElasticConfig, stragglers: Sequence[Straggler]) -> None:
        bounds = view.bounds
        self.view, self.config = view, config
        self.wanted = max(bounds.min, min(bounds.target, bounds.max, view.shards))
        self.staying = [member for member in view.members if not member.draining]
        self.draining = [member for member in view.members if member.draining]
        self.slow = [straggler.worker for straggler in stragglers]
        self.evicting = self._evicting() if config.evict_stragglers else []
        ready = sorted(view.ready, key=lambda spare: (spare.ready_since, spare.worker))
        usable = [spare for spare in ready if not spare.draining]
        self.lost_spares = [spare.worker for spare in ready if spare.draining]
        self.have = len(self.staying) - len(self.evicting) + len(usable) + len(view.warming) + len(view.pending)
        newest_first = (*view.pending[::-1], *view.warming[::-1], *(spare.worker for spare in usable[::-1]))
        self.surplus = newest_first[: max(0, self.have - self.wanted)]
        gone = set(self.surplus)
        self.ready = [spare for spare in usable if spare.worker not in gone]
        self.warming = [worker for worker in view.warming if worker not in gone]
        self.pending = [worker for worker in view.pending if worker not in gone]

    # offers

    def cancel(self) -> CancelOffers | None:
        reasons = []
        if self.surplus:
            reasons.append(f"{_names(self.surplus)} beyond the {self.wanted} wanted")
        if self.lost_spares:
            reasons.append(f"{_names(self.lost_spares)} on a machine that is taken away")
        return CancelOffers((*self.surplus, *self.lost_spares), f"cancel {', and '.join(reasons)}") if reasons else None

    def offer(self) -> Offer | None:
        count = self.wanted - self.have
        if count <= 0 or self.view.no_offers:
            return None
        going = len(self.draining) + len(self.evicting)
        leaving = f" ({going} more to be replaced)" if going else ""
        there = f"{len(self.staying) - len(self.evicting)} stay{leaving}, {len(self.ready)} ready"
        return Offer(count, f"offer {_workers(count)} more: {self.wanted} wanted, {there}, {self._underway()}")

    def _underway(self) -> str:
        return f"{len(self.warming)} starting, {len(self.pending)} waiting for a place"

    # membership

    def membership(self) -> Change | Hold | Noop:
        if self.view.held or not self.view.members:
            return self._assemble()
        if len(self.staying) > self.wanted:
            return self._shrink()
        if self.draining:
            return self._drain()
        return self._evict() or self._grow()

    def _joiners(self, room: int) -> tuple[WorkerId, ...]:
        return tuple(spare.worker for spare in self.ready[: max(0, room)])

    def _assemble(self) -> Change | Noop:
        """The first generation, or the first after a hold: nothing trains, so there is no pause to pay for."""
        staying, least = len(self.staying), self.view.bounds.min
        if staying > self.wanted:
            return self._shrink()
        join = self._joiners(self.wanted - staying)
        size = staying + len(join)
        if size < least or not size:
            offers = self.view.no_offers or self._underway()
            return Noop("capacity", f"wait for capacity: {size} of at least {_workers(least)} ready; {offers}")
        if not self.view.held and (wait := self._coalesce(self.wanted)):
            return wait
        verb = "go on" if self.view.held else "start"
        return Change(join, _ids(self.draining), f"{verb} with {_workers(size)}: at least {least} needed, {self.wanted} wanted")

    def _shrink(self) -> Change:
        chosen = self._least_harmful(len(self.staying) - self.wanted)
        leave = (*_ids(self.draining), *chosen)
        reason = f"shrink from {len(self.view.members)} to {_workers(self.wanted)}, the wanted size: without {_names(leave)}"
        return Change((), leave, reason)

    def _least_harmful(self, count: int) -> tuple[WorkerId, ...]:
        """Stragglers, then those that share their machine, then those alone on theirs; within each the highest ranks, rank 0 last of all."""
        by_worker = {member.worker: member for member in self.staying}
        chosen = [worker for worker in self.slow if worker in by_worker]
        rank_0 = self.view.members[0].worker
        last = [rank_0] if rank_0 in by_worker and rank_0 not in chosen else []
        crowd = Counter(member.node for member in self.staying)
        crowd.subtract(by_worker[worker].node for worker in chosen)
        passed = {*chosen, *last}
        alone = []
        for member in reversed(self.staying):
            if member.worker in passed:
                continue
            if crowd[member.node] > 1:
                chosen.append(member.worker)
                crowd[member.node] -= 1
            else:
                alone.append(member.worker)
        return (*chosen, *alone, *last)[:count]

    def _drain(self) -> Change | Hold | Noop:
        """All that drain leave in one change, with the ready ones in their places, as soon as enough remain; no gate, no cooldown."""
        least = self.view.bounds.min
        join = self._joiners(self.wanted - len(self.staying))
        if len(self.staying) + len(join) >= least:
            return self._let_go(self.draining, join)
        urgent = [member for member in self.draining if self._seconds_left(member) <= self._hold_lead()]
        if not urgent:
            there = f"without them {len(self.staying)} of at least {_workers(least)} remain; {len(join)} ready, {self._underway()}"
            return Noop("capacity", f"draining {_names(_ids(self.draining))} train on until they are replaced: {there}")
        rest = len(self.view.members) - len(urgent)
        join = self._joiners(self.wanted - rest)
        if rest + len(join) >= least:
            return self._let_go(urgent, join)
        remain = f"{len(self.staying)} of at least {_workers(least)} remain, {len(join)} ready"
        return Hold(
            _ids(self.draining), f"save a checkpoint and wait for capacity: without draining {_names(_ids(self.draining))} {remain}"
        )

    def _let_go(self, going: Sequence[MemberView], join: tuple[WorkerId, ...]) -> Change:
        size = len(self.view.members) - len(going) + len(join)
        soonest = max(0.0, min(self._seconds_left(member) for member in going))
        replaced = f"; {_names(join)} join in their places" if join else ""
        reason = f"let {_names(_ids(going))} go, draining with {soonest:.0f} s to the deadline{replaced}; {_workers(size)} go on"
        return Change(join, _ids(going), reason)

    def _seconds_left(self, member: MemberView) -> float:
        return 0.0 if member.leave_by is None else member.leave_by - self.view.now

    def _hold_lead(self) -> float:
        return max(HOLD_LEAD_S, 2 * (self.view.costs.save_s or 0.0)) + 2 * (self.view.step_s or 0.0)

    def _grow(self) -> Change | Noop:
        now, bounds = len(self.staying), self.view.bounds
        room = self.wanted - now
        join = self._joiners(room)
        if not join:
            if room <= 0:
                return Noop("settled", f"{_workers(now)} train, as wanted")
            offers = self.view.no_offers or self._underway()
            return Noop("capacity", f"{now} of {self.wanted} wanted workers train; {offers}")
        asked = self.view.asked or now < bounds.min
        if not asked and (wait := self._cool_down()):
            return wait
        if wait := self._coalesce(room):
            return wait
        size = now + len(join)
        if asked:
            return Change(join, (), f"grow from {now} to {_workers(size)} as asked")
        return self._if_it_pays(join, (), f"grow from {now} to {_workers(size)}", f"stay at {_workers(now)}")

    def _evict(self) -> Change | Noop | None:
        """Stragglers leave in one change with their replacement, or without one where even fewer workers are faster."""
        if not self.evicting or self.view.asked:
            return None
        join = self._joiners(self.wanted - len(self.staying) + len(self.evicting))
        size = len(self.staying) - len(self.evicting) + len(join)
        if size < self.view.bounds.min or not size or (not join and self.warming):
            return None
        if wait := self._cool_down():
            return wait
        if join and (wait := self._coalesce(self.wanted - size + len(join))):
            return wait
        replaced = f"replace {_names(self.evicting)} by {_names(join)}" if join else f"let {_names(self.evicting)} go"
        change = self._if_it_pays(join, tuple(self.evicting), f"{replaced}, slower than the others", "keep stragglers")
        return change if isinstance(change, Change) else None

    def _evicting(self) -> list[WorkerId]:
        """The staying stragglers, if workers of the usual pace in their places would pay."""
        slow = [member.worker for member in self.staying if member.worker in self.slow]
        gain = self._gain(len(self.staying), slow) if slow else None
        return slow if gain is not None and gain.saved_s > self._cost_s(grow=True) else []

    def _cool_down(self) -> Noop | None:
        last, distance = self.view.last_change_at, self.config.cooldown_s
        if last is None or self.view.now - last >= distance:
            return None
        return Noop("cooldown", f"{len(self.ready)} ready; the last change is less than elastic.cooldown_s = {distance:g} s ago")

    def _coalesce(self, room: int) -> Noop | None:
        if not self.warming or not self.ready or len(self.ready) >= room:
            return None
        if self.view.now - self.ready[0].ready_since >= COALESCE_S:
            return None
        waited = f"wait at most {COALESCE_S:g} s for {_workers(len(self.warming))} still starting"
        return Noop("coalescing", f"{len(self.ready)} ready {waited}, to join in one change")

    def _if_it_pays(self, join: tuple[WorkerId, ...], leave: tuple[WorkerId, ...], doing: str, staying: str) -> Change | Noop:
        size = len(self.staying) + len(join) - len(leave)
        gain = self._gain(size, leave)
        if gain is None:
            return Noop("gain", f"{staying}: how long a step takes at this size is not measured yet")
        if gain.share_then >= gain.share_now and not leave:
            why = f"with {size} the largest share of a rank is {gain.share_then} of {self.view.shards} shards as well, no step gets shorter"
            return Noop("gain", f"{staying}: {why}; {_names(join)} stand by")
        grow = bool(join)
        cost = self._cost_s(grow=grow)
        shares = f"the largest share of a rank goes from {gain.share_now} to {gain.share_then} of {self.view.shards} shards"
        balance = f"{shares}, which saves about {_s(gain.saved_s)} of the next {_s(gain.window_s)} and costs about {_s(cost)}"
        if gain.saved_s <= cost:
            return Noop("gain", f"{staying}: {balance}")
        return Change(join, leave, f"{doing}: {balance}")

    def _cost_s(self, *, grow: bool) -> float:
        """The pause, and for newcomers the warm-up: spent already for this one, but the next standing offer spends it again."""
        costs = self.view.costs
        pause = costs.grow_s if grow else costs.shrink_s
        return (ASSUMED_PAUSE_S if pause is None else pause) + ((costs.warm_up_s or 0.0) if grow else 0.0)

    def _gain(self, size: int, leave: Collection[WorkerId]) -> Gain | None:
        view, window = self.view, self.config.horizon_s
        if view.steps_left is not None and view.step_s is not None:
            window = min(window, view.steps_left * view.step_s)
        return estimate_gain(view.members, shards=view.shards, size=size, leave=leave, step_s=view.step_s, window_s=window)


def _ids(members: Iterable[MemberView]) -> tuple[WorkerId, ...]:
    return tuple(member.worker for member in members)


def _names(workers: Sequence[WorkerId]) -> str:
    named = ", ".join(workers[:NAMED])
    return named if len(workers) <= NAMED else f"{named} and {len(workers) - NAMED} more"


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
