"""What measured seconds say about a group: who is a straggler, and what another size would gain. Pure.

The estimate: a rank's computing grows with its shards, everything else in a step stays as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launcher.core.types import WorkerId
from launcher.runtime.policies.views import MemberView

STRAGGLER_RATIO = 1.5
STRAGGLER_AGE_S = 10.0
"""Of a member's first steps nothing is concluded: its memory, caches and data workers are still cold."""


@dataclass(frozen=True)
class Straggler:
    worker: WorkerId
    ratio: float
    """Its seconds per shard to the median of the other members'."""
    reason: str


@dataclass(frozen=True)
class Gain:
    """Of another size over the present one."""

    share_now: int
    share_then: int
    """Shards of the rank that has most."""
    window_s: float
    saved_s: float
    """Of the window's seconds; 0 when it would be slower."""


def find_stragglers(members: Collection[MemberView], now: float) -> tuple[Straggler, ...]:
    """Members that take more than STRAGGLER_RATIO times as long for a shard as the median of the others; the slowest first."""
    old = [member for member in members if now - member.joined_at >= STRAGGLER_AGE_S]
    pace = {member.worker: seconds for member in old if (seconds := _per_shard(member)) is not None}
    ordered = sorted(pace.values())
    found = []
    for worker, seconds in pace.items():
        usual = _median_of_others(ordered, seconds)
        if usual > 0 and seconds > STRAGGLER_RATIO * usual:
            ratio = seconds / usual
            reason = f"{worker} takes {ratio:.1f} times as long as the others: {seconds:.3g} s a shard, their median is {usual:.3g} s"
            found.append(Straggler(worker, ratio, reason))
    return tuple(sorted(found, key=lambda straggler: (-straggler.ratio, straggler.worker)))


def estimate_gain(
    members: Collection[MemberView], *, shards: int, size: int, leave: Collection[WorkerId], step_s: float | None, window_s: float
) -> Gain | None:
    """Of going on for `window_s` with `size` members (1 or more) without those who leave; None while no step is measured.

    Newcomers are taken to be as fast as the slowest of those who stay.
    """
    if not step_s or not members:
        return None
    now, then = -(-shards // len(members)), -(-shards // size)
    busy = [member.busy_s for member in members if member.busy_s is not None]
    staying = [seconds for member in members if member.worker not in leave and (seconds := _per_shard(member)) is not None]
    if len(busy) == len(members) and staying:
        computing, later = min(step_s, max(busy)), max(staying) * then
    else:  # whose computing is the longest is not known yet: the whole step counts as computing
        computing, later = step_s, step_s * then / now
    return Gain(now, then, window_s, window_s * max(0.0, computing - later) / step_s)


def _per_shard(member: MemberView) -> float | None:
    return None if member.busy_s is None or member.shards < 1 else member.busy_s / member.shards


def _median_of_others(ordered: Sequence[float], value: float) -> float:
    """The median of sorted values without one occurrence of `value`; 0 when nothing remains."""
    own, rest = bisect_left(ordered, value), len(ordered) - 1
    if rest < 1:
        return 0.0
    middle = ((rest - 1) // 2, rest // 2)
    return sum(ordered[index + (index >= own)] for index in middle) / 2
