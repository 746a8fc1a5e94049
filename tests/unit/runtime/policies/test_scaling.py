"""Which workers are offered, cancelled, joined and let go, and why; rule by rule, then on a cluster whose capacity comes and goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import ElasticConfig
from launcher.core.types import WorkerId
from launcher.record.desired import WorkerBounds
from launcher.runtime.policies import scaling as s
from launcher.runtime.policies import views as v
from launcher.runtime.policies.stragglers import find_stragglers
from launcher.runtime.policies.views import MemberView

pytestmark = pytest.mark.unit
CONFIG = ElasticConfig(cooldown_s=30.0)
EVICTING = ElasticConfig(evict_stragglers=True)
NOW = 1000.0
SHARDS = 8
MEASURED = v.MeasuredCosts(grow_s=0.3, shrink_s=0.1, warm_up_s=0.5)


def members(count: int, nodes: str = "", **values: Any) -> tuple[MemberView, ...]:
    """w0, w1, ...; each on a node of its own unless `nodes` has a letter for each."""
    names = nodes or "abcdefghijkl"
    share, more = divmod(SHARDS, count) if count else (0, 0)
    shares = [share + (rank < more) for rank in range(count)]
    return tuple(
        MemberView(**{"worker": WorkerId(f"w{rank}"), "node": names[rank], "joined_at": 0.0, "shards": shares[rank], **values})
        for rank in range(count)
    )


def drained(group: tuple[MemberView, ...], *ranks: int, leave_by: float | None = NOW + 25) -> tuple[MemberView, ...]:
    return tuple(replace(one, draining=True, leave_by=leave_by) if rank in ranks else one for rank, one in enumerate(group))


def busy(group: tuple[MemberView, ...], *seconds: float) -> tuple[MemberView, ...]:
    return tuple(replace(one, busy_s=per_shard * one.shards) for one, per_shard in zip(group, seconds, strict=True))


def spares(*names: str, since: float = NOW - 60) -> tuple[v.SpareView, ...]:
    return tuple(v.SpareView(worker=WorkerId(name), node="z", ready_since=since) for name in names)


def ids(*names: str) -> tuple[WorkerId, ...]:
    return tuple(WorkerId(name) for name in names)


def decide(least: int, most: int, target: int, config: ElasticConfig = CONFIG, **values: Any) -> s.ScalingDecision:
    bounds = WorkerBounds(min=least, max=most, target=target)
    known = {"now": NOW, "shards": SHARDS, "step_s": 0.2, "costs": MEASURED}
    return s.decide(v.GroupView(**{"bounds": bounds, **known, **values}), config)


def change(plan: s.ScalingDecision) -> s.Change:
    assert isinstance(plan.membership, s.Change), plan.membership
    return plan.membership


def noop(plan: s.ScalingDecision) -> s.Noop:
    assert isinstance(plan.membership, s.Noop), plan.membership
    return plan.membership


# offers


def test_offers_stand_up_to_the_target() -> None:
    plan = decide(1, 8, 6, members=members(2), warming=ids("s0"), pending=ids("p0"), asked=True)
    assert plan.offer == s.Offer(2, "offer 2 workers more: 6 wanted, 2 stay, 0 ready, 1 starting, 1 waiting for a place")
    assert plan.cancel is None


def test_nobody_starts_while_a_change_takes_processors_for_its_first_step() -> None:
    joins = decide(1, 8, 6, members=members(2), ready=spares("r0"), asked=True)
    assert isinstance(joins.membership, s.Change)
    assert joins.offer is None
    assert decide(1, 8, 6, members=members(3), settling=True).offer is None
    assert decide(1, 8, 6, members=members(3)).offer is not None


def test_draining_members_are_replaced_by_an_offer() -> None:
    plan = decide(1, 3, 3, members=drained(members(3), 2))
    assert isinstance(plan.membership, s.Change)
    assert plan.offer is None, "once it has left"
    after = decide(1, 3, 3, members=members(2))
    assert after.offer is not None
    assert after.offer.count == 1


def test_nothing_is_offered_when_offers_are_stopped() -> None:
    plan = decide(1, 4, 4, members=members(2), no_offers="3 workers in a row could not be started")
    assert plan.offer is None
    assert "3 workers in a row" in noop(plan).reason


def test_more_workers_than_shards_are_not_wanted() -> None:
    assert decide(1, 16, 16, members=members(SHARDS)).offer is None


def test_offers_are_cancelled_before_a_shrink_the_newest_and_least_advanced_first() -> None:
    plan = decide(1, 8, 3, asked=True, members=members(2), ready=spares("r0", "r1"), warming=ids("s0"), pending=ids("p0", "p1"))
    assert plan.cancel == s.CancelOffers(ids("p1", "p0", "s0", "r1"), "cancel p1, p0, s0, r1 beyond the 3 wanted")
    assert change(plan).join == ids("r0")


def test_a_spare_whose_machine_is_taken_away_is_cancelled_and_not_joined() -> None:
    spare = replace(spares("r0")[0], draining=True)
    plan = decide(1, 3, 3, members=members(2), ready=(spare,), asked=True)
    assert plan.cancel is not None
    assert plan.cancel.workers == ids("r0")
    assert plan.offer is not None
    assert noop(plan).topic == "capacity"


def test_nothing_is_decided_during_a_change() -> None:
    plan = decide(1, 8, 8, members=drained(members(2), 1), ready=spares("r0"), asked=True, changing=True)
    assert (plan.cancel, plan.offer, noop(plan).topic) == (None, None, "changing")


# growing


def test_the_first_generation_waits_for_those_still_starting_but_not_for_ever() -> None:
    values: dict[str, Any] = {"warming": ids("s0"), "step_s": None, "costs": v.MeasuredCosts()}
    assert noop(decide(2, 4, 3, ready=spares("r0"), **values)).topic == "capacity"
    assert noop(decide(2, 4, 3, ready=spares("r0", "r1", since=NOW - 9), **values)).topic == "coalescing"
    assert change(decide(2, 4, 3, ready=spares("r0", "r1", since=NOW - 10), **values)).join == ids("r0", "r1")


def test_growing_as_asked_waits_for_no_gain_and_no_cooldown() -> None:
    plan = decide(1, 8, 6, members=members(5), ready=spares("r0"), asked=True, step_s=None, last_change_at=NOW)
    assert change(plan) == s.Change(ids("r0"), (), "grow from 5 to 6 workers as asked")


def test_growing_as_asked_is_one_change_where_that_is_soon_possible() -> None:
    values: dict[str, Any] = {"members": members(2), "warming": ids("s0"), "asked": True}
    assert noop(decide(1, 8, 4, ready=spares("r0", since=NOW - 3), **values)).topic == "coalescing"
    assert change(decide(1, 8, 4, ready=spares("r0", since=NOW - 11), **values)).join == ids("r0")


def test_growing_unasked_pays_when_the_largest_share_falls() -> None:
    plan = decide(1, 4, 4, members=members(3), ready=spares("r0"))
    assert change(plan).join == ids("r0")
    assert "the largest share of a rank goes from 3 to 2 of 8 shards" in plan.membership.reason
    assert "saves about 200 s of the next 600 s and costs about 0.8 s" in plan.membership.reason


def test_growing_unasked_gains_nothing_when_the_largest_share_stays() -> None:
    reason = noop(decide(1, 6, 6, members=members(5), ready=spares("r0"))).reason
    assert reason == "stay at 5 workers: with 6 the largest share of a rank is 2 of 8 shards as well, no step gets shorter; r0 stand by"
    assert change(decide(1, 8, 8, members=members(5), ready=spares("r0", "r1", "r2"))).join == ids("r0", "r1", "r2")


def test_growing_unasked_does_not_pay_just_before_the_end() -> None:
    assert noop(decide(1, 4, 4, members=members(3), ready=spares("r0"), steps_left=11)).topic == "gain"
    assert change(decide(1, 4, 4, members=members(3), ready=spares("r0"), steps_left=13))


def test_only_computing_gets_shorter() -> None:
    group = busy(members(3), 0.001, 0.001, 0.001)
    plan = decide(1, 4, 4, members=group, ready=spares("r0"), costs=v.MeasuredCosts(grow_s=3.1))
    assert noop(plan).topic == "gain", "0.001 s of a step of 0.2 s for 600 s are 3 s"


def test_a_step_that_is_not_measured_promises_nothing() -> None:
    assert "not measured" in noop(decide(1, 4, 4, members=members(3), ready=spares("r0"), step_s=None)).reason


def test_growing_unasked_keeps_its_distance_from_the_last_change() -> None:
    plan = decide(1, 4, 4, members=members(3), ready=spares("r0"), last_change_at=NOW - 29)
    assert noop(plan).topic == "cooldown"
    assert change(decide(1, 4, 4, members=members(3), ready=spares("r0"), last_change_at=NOW - 30))


def test_a_group_below_a_raised_minimum_grows_without_a_gate() -> None:
    plan = decide(6, 8, 8, members=members(5), ready=spares("r0"), step_s=None, last_change_at=NOW)
    assert change(plan).join == ids("r0")


def test_a_held_group_goes_on_as_soon_as_enough_are_ready() -> None:
    values: dict[str, Any] = {"held": True, "last_change_at": NOW, "step_s": None, "warming": ids("s0", "s1")}
    waiting = noop(decide(3, 4, 4, members=members(1), ready=spares("r0"), **values))
    assert waiting.reason.startswith("wait for capacity: 2 of at least 3 workers ready; 2 starting, 0 waiting")
    assert change(decide(3, 4, 4, members=members(1), ready=spares("r0", "r1", since=NOW), **values)).join == ids("r0", "r1")
    lowered = change(decide(1, 4, 4, members=members(1), **values))
    assert (lowered.join, lowered.leave) == ((), ()), "the minimum was lowered: it goes on as it is"


# shrinking and draining


def test_a_target_below_the_size_is_obeyed_at_once_by_the_highest_ranks() -> None:
    plan = decide(1, 8, 2, members=members(4), last_change_at=NOW)
    assert change(plan) == s.Change((), ids("w3", "w2"), "shrink from 4 to 2 workers, the wanted size: without w3, w2")


@pytest.mark.parametrize(
    ("nodes", "slow", "gone", "left"),
    [
        ("aabb", None, 3, ("w3", "w1", "w2")),
        ("aabc", None, 2, ("w1", "w3")),
        ("abcd", 1, 2, ("w1", "w3")),
        ("aaab", 0, 2, ("w0", "w2")),
        ("aaaa", None, 3, ("w3", "w2", "w1")),
    ],
)
def test_the_least_harmful_leave(nodes: str, slow: int | None, gone: int, left: tuple[str, ...]) -> None:
    group = busy(members(4, nodes), *(0.1 if rank == slow else 0.01 for rank in range(4)))
    assert change(decide(1, 8, 4 - gone, members=group)).leave == ids(*left)


def test_draining_members_leave_first_and_with_a_shrink() -> None:
    assert change(decide(1, 8, 2, members=drained(members(4), 0))).leave == ids("w0", "w3")


def test_all_that_drain_leave_in_one_change_with_their_replacement_in_it() -> None:
    values: dict[str, Any] = {"last_change_at": NOW, "step_s": None, "warming": ids("s0")}
    plan = decide(2, 4, 4, members=drained(members(4, "aabb"), 2, 3), ready=spares("r0", since=NOW), **values)
    assert (change(plan).join, change(plan).leave) == (ids("r0"), ids("w2", "w3"))
    reason = "let w2, w3 go, draining with 25 s to the deadline; r0 join in their places; 3 workers go on"
    assert plan.membership.reason == reason


def test_draining_members_train_on_until_enough_remain_or_the_deadline_is_near() -> None:
    def plan(seconds: float | None, ready: int = 0) -> s.ScalingDecision:
        group = drained(members(3), 1, 2, leave_by=None if seconds is None else NOW + seconds)
        return decide(2, 3, 3, members=group, ready=spares(*(f"r{n}" for n in range(ready))), warming=ids("s0"))

    assert noop(plan(25)).topic == "capacity"
    assert change(plan(25, ready=1)).leave == ids("w1", "w2")
    for seconds in (10, None):
        hold = plan(seconds).membership
        assert isinstance(hold, s.Hold)
        assert hold.leave == ids("w1", "w2")
        assert "1 of at least 2 workers remain" in hold.reason


def test_a_hold_leaves_time_for_the_checkpoint() -> None:
    costs = replace(MEASURED, save_s=12.0)
    assert isinstance(decide(2, 2, 2, members=drained(members(2), 1, leave_by=NOW + 24), costs=costs).membership, s.Hold)


def test_who_has_time_stays_when_that_keeps_the_group_together() -> None:
    group = members(3)
    group = (group[0], *drained(group, 1, leave_by=NOW + 5)[1:2], *drained(group, 2, leave_by=NOW + 120)[2:])
    assert change(decide(2, 3, 3, members=group)).leave == ids("w1")


# stragglers


def test_a_straggler_is_named_with_its_ratio() -> None:
    group = busy(members(4), 0.010, 0.011, 0.012, 0.022)
    (straggler,) = decide(1, 4, 4, members=group).stragglers
    assert straggler.worker == "w3"
    assert straggler.ratio == pytest.approx(2.0)
    assert "w3 takes 2.0 times as long as the others" in straggler.reason


def test_seconds_are_compared_per_shard() -> None:
    assert find_stragglers(busy(members(3), 0.01, 0.01, 0.01), NOW) == (), "3 + 3 + 2 shards"


@pytest.mark.parametrize("group", [busy(members(1), 9.0), busy(members(2, joined_at=NOW - 5), 0.1, 9.0), members(3), ()])
def test_nobody_is_slow_alone_or_at_once_or_unmeasured(group: tuple[MemberView, ...]) -> None:
    assert find_stragglers(group, NOW) == ()


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=9))
def test_a_straggler_is_told_by_the_median_of_all_others(seconds: list[float]) -> None:
    one_each = tuple(replace(member, busy_s=busy_s) for member, busy_s in zip(members(len(seconds), shards=1), seconds, strict=True))
    expected = set()
    for rank, own in enumerate(seconds):
        others = sorted(seconds[:rank] + seconds[rank + 1 :])
        middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
        if own > 1.5 * middle:
            expected.add(f"w{rank}")
    assert {straggler.worker for straggler in find_stragglers(one_each, NOW)} == expected


def test_a_straggler_is_only_reported_unless_eviction_is_asked() -> None:
    group = busy(members(4), 0.02, 0.02, 0.02, 0.09)
    assert decide(1, 4, 4, members=group).offer is None
    plan = decide(1, 4, 4, EVICTING, members=group, warming=ids("s0"))
    assert noop(plan).topic == "settled", "its replacement is about to be ready"
    plan = decide(1, 4, 4, EVICTING, members=group, ready=spares("r0"))
    assert (change(plan).join, change(plan).leave) == (ids("r0"), ids("w3"))
    assert plan.membership.reason.startswith("replace w3 by r0, slower than the others: ")


def test_a_straggler_leaves_without_replacement_where_fewer_are_faster() -> None:
    group = busy(members(4), 0.02, 0.02, 0.02, 0.09)
    plan = decide(1, 4, 4, EVICTING, members=group, pending=ids("p0"))
    assert (change(plan).join, change(plan).leave) == ((), ids("w3"))
    mild = busy(members(2), 0.02, 0.035)
    assert noop(decide(1, 2, 2, EVICTING, members=mild, pending=ids("p0"))).topic == "settled"
    assert noop(decide(4, 4, 4, EVICTING, members=group, pending=ids("p0"))).topic == "settled", "never below the minimum"


def test_an_eviction_keeps_its_distance_and_has_to_pay() -> None:
    group = busy(members(4), 0.02, 0.02, 0.02, 0.09)
    assert noop(decide(1, 4, 4, EVICTING, members=group, ready=spares("r0"), last_change_at=NOW - 1)).topic == "cooldown"
    plan = decide(1, 4, 4, EVICTING, members=group, steps_left=5)
    assert (plan.offer, noop(plan).topic) == (None, "settled")


def test_a_large_group_is_decided_in_milliseconds() -> None:
    size = 4096
    group = tuple(
        MemberView(worker=WorkerId(f"w{n}"), node=f"n{n // 8}", busy_s=0.1, joined_at=0.0, shards=2, draining=n % 512 == 0)
        for n in range(size)
    )
    begun = time.perf_counter()
    plan = decide(1, size, 1024, EVICTING, members=group, shards=2 * size, warming=ids(*(f"s{n}" for n in range(64))))
    assert time.perf_counter() - begun < 1.0, "some 20 ms; a hang limit, not a measurement"
    assert len(change(plan).leave) == size - 1024
    assert "and 3067 more" in plan.membership.reason


# on a cluster


@dataclass
class Cluster:
    """Machines with places, and the thin shell around the policy; one tick is a second, a worker is ready after four."""

    bounds: WorkerBounds
    config: ElasticConfig
    places: dict[str, int] = field(default_factory=lambda: {"a": 3, "b": 3, "c": 3})
    now: float = 0.0
    members: list[str] = field(default_factory=list)
    node: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    leave_by: dict[str, float] = field(default_factory=dict)
    """By node."""
    slow: set[str] = field(default_factory=set)
    """Nodes."""
    held: bool = False
    asked: bool = True
    last: float | None = None
    count: int = 0
    history: list[s.ScalingDecision] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return min(self.bounds.target, self.bounds.max, SHARDS)

    def spares(self, *, ready: bool) -> list[str]:
        return [name for name in self.node if name not in self.members and (self.now - self.since[name] >= 4) == ready]

    def snapshot(self) -> v.GroupView:
        size = len(self.members)
        largest = -(-SHARDS // size) if size else 0
        views = [
            MemberView(
                worker=WorkerId(name),
                node=self.node[name],
                draining=self.node[name] in self.leave_by,
                leave_by=self.leave_by.get(self.node[name]),
                busy_s=0.1 * largest * (3 if self.node[name] in self.slow else 1),
                joined_at=self.since[name],
                shards=largest,
            )
            for name in self.members
        ]
        ready = [
            v.SpareView(
                worker=WorkerId(name), node=self.node[name], draining=self.node[name] in self.leave_by, ready_since=self.since[name] + 4
            )
            for name in self.spares(ready=True)
        ]
        return v.GroupView(
            now=self.now,
            bounds=self.bounds,
            asked=self.asked,
            members=tuple(views),
            ready=tuple(ready),
            warming=ids(*self.spares(ready=False)),
            pending=ids(*self.pending),
            step_s=max((view.busy_s or 0.0 for view in views), default=None),
            costs=MEASURED,
            last_change_at=self.last,
            shards=SHARDS,
            held=self.held,
        )

    def lose(self, names: list[str]) -> None:
        for name in names:
            del self.node[name]
            if name in self.members:
                self.members.remove(name)
                self.last = self.now
        self.held = self.held or 0 < len(self.members) < self.bounds.min or (bool(names) and not self.members)

    def tick(self) -> s.ScalingDecision:
        self.now += 1
        for node, deadline in list(self.leave_by.items()):
            if self.now >= deadline:
                self.lose([name for name in self.node if self.node[name] == node])
                del self.leave_by[node]
        for node, places in self.places.items():
            free = places - list(self.node.values()).count(node)
            for name in self.pending[: max(0, free)] if node not in self.leave_by else []:
                self.pending.remove(name)
                self.node[name], self.since[name] = node, self.now
        snapshot = self.snapshot()
        plan = s.decide(snapshot, self.config)
        assert plan == s.decide(snapshot, self.config), "the same snapshot, the same plan"
        self._carry_out(plan)
        self.asked = self.asked and len(self.members) != self.wanted
        self.history.append(plan)
        return plan

    def _carry_out(self, plan: s.ScalingDecision) -> None:
        for name in plan.cancel.workers if plan.cancel else ():
            assert name not in self.members
            if name in self.pending:
                self.pending.remove(name)
            else:
                del self.node[name]
        for _ in range(plan.offer.count if plan.offer else 0):
            self.pending.append(f"w{self.count}")
            self.count += 1
        staying = [name for name in self.members if self.node[name] not in self.leave_by]
        assert len(self.pending) + len(self.spares(ready=True)) + len(self.spares(ready=False)) <= self.bounds.max
        if isinstance(plan.membership, s.Hold):
            assert len(staying) < self.bounds.min, "a hold only where there is no other way"
            self.members = [name for name in self.members if name not in plan.membership.leave]
            for name in plan.membership.leave:
                del self.node[name]
            self.held = True
        if isinstance(plan.membership, s.Change):
            self._change(plan.membership, forced=self.asked or self.held or len(staying) < max(self.bounds.min, len(self.members)))

    def _change(self, wanted: s.Change, *, forced: bool) -> None:
        before, joined = len(self.members), set(self.spares(ready=True))
        assert set(wanted.leave) <= set(self.members)
        assert set(wanted.join) <= joined
        self.members = [name for name in self.members if name not in wanted.leave] + list(wanted.join)
        for name in wanted.leave:
            del self.node[name]
        size = len(self.members)
        assert size <= max(self.bounds.max, 0)
        assert size >= min(self.bounds.min, before), "never below the minimum by choice"
        assert not self.held or size >= self.bounds.min
        self.held = False
        shrunk = before > self.wanted
        if not forced and not shrunk:
            assert self.last is None or self.now - self.last >= self.config.cooldown_s, "one unasked change within a cooldown"
        if not self.asked:
            self.last = self.now


bounds = st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)).map(
    lambda drawn: WorkerBounds(min=drawn[0], target=drawn[0] + min(drawn[1], drawn[2]), max=drawn[0] + drawn[2])
)
happenings = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 3, 10, 30])),
    st.tuples(st.just("kill"), st.integers(0, 7)),
    st.tuples(st.just("drain"), st.sampled_from("abc")),
    st.tuples(st.just("places"), st.tuples(st.sampled_from("abc"), st.integers(0, 3))),
    st.tuples(st.just("slow"), st.sampled_from("abc")),
    st.tuples(st.just("wish"), bounds),
)


def happen(cluster: Cluster, kind: str, value: Any) -> None:
    match kind:
        case "wait":
            for _ in range(value):
                cluster.tick()
        case "kill" if cluster.members:
            cluster.lose([cluster.members[value % len(cluster.members)]])
        case "drain":
            cluster.leave_by.setdefault(value, cluster.now + 25)
            cluster.places[value] = 0
        case "places":
            cluster.places[value[0]] = value[1]
        case "slow":
            cluster.slow ^= {value}
        case "wish":
            cluster.bounds, cluster.asked = value, True


@settings(max_examples=40)
@given(bounds, st.booleans(), st.lists(happenings, min_size=3, max_size=12))
def test_on_a_cluster_that_comes_and_goes_the_bounds_hold_and_the_group_comes_to_rest(
    wish: WorkerBounds, evict: bool, script: list[tuple[str, Any]]
) -> None:
    cluster = Cluster(wish, ElasticConfig(evict_stragglers=evict))
    for kind, value in [("wait", 20), *script]:
        happen(cluster, kind, value)
        cluster.tick()
    cluster.slow.clear()
    for _ in range(80):
        cluster.tick()
    at_rest = cluster.history[-1]
    assert at_rest.cancel is None
    assert at_rest.offer is None
    assert isinstance(at_rest.membership, s.Noop)
    alive, standing_by = len(cluster.node), cluster.spares(ready=True)
    assert alive + len(cluster.pending) == cluster.wanted, "members, spares and offers make up the wanted size"
    assert not standing_by or at_rest.membership.topic in {"gain", "capacity"}
    if at_rest.membership.topic == "capacity" and alive >= cluster.bounds.min:
        assert not standing_by
    assert not cluster.held or alive < cluster.bounds.min
