"""From the moments at which steps began to the pause of a change, and the marks that a peer leaves. Pure but for reading.

What a change costs beyond one step time: the longest distance between the beginnings of two consecutive applied steps,
less the median step before. All moments are time.monotonic() of one machine.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class NothingMeasured(Exception):
    """The steps that a pause would be measured by are not there."""


@dataclass(frozen=True)
class Gap:
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Pause:
    pause_s: float
    """Beyond one step time, of the member that felt the longest; never below 0."""
    step_s: float
    """The median step before."""
    resumed_at: float
    """When the first step after the pause began."""


@dataclass(frozen=True)
class Mark:
    """What a worker of a peer says of each step that it has applied."""

    at: float
    step: int
    world_size: int
    rank: int


def read_steps(folder: Path) -> dict[int, list[float]]:
    """When each process began its steps, by pid. A last line that was cut short is left out."""
    return {
        int(path.stem): [float(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for path in sorted(folder.glob("*.steps"))
    }


def read_marks(folder: Path) -> list[Mark]:
    """All marks of all workers, in order of time."""
    lines = (line for path in folder.glob("*.marks") for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return sorted((Mark(*json.loads(line)) for line in lines), key=lambda mark: mark.at)


def longest_gap(moments: Sequence[float], begin: float, end: float) -> Gap:
    """The longest distance between two consecutive moments of which some part lies between `begin` and `end`. Raises NothingMeasured."""
    gaps = [Gap(left, right) for left, right in itertools.pairwise(moments) if right >= begin and left <= end]
    if not gaps:
        raise NothingMeasured(f"no step between {begin:.3f} and {end:.3f}, among {len(moments)}")
    return max(gaps, key=lambda gap: gap.seconds)


def gap_before(moments: Sequence[float], at: float) -> Gap:
    """The distance that ends with the moment nearest to `at`: where a planned change went over. Raises NothingMeasured."""
    gaps = [Gap(left, right) for left, right in itertools.pairwise(moments)]
    if not gaps:
        raise NothingMeasured(f"no step around {at:.3f}, among {len(moments)}")
    return min(gaps, key=lambda gap: abs(gap.ended - at))


def median_step(moments: Sequence[float], begin: float, end: float) -> float:
    """The median distance of consecutive moments within [begin, end]. Raises NothingMeasured."""
    within = [moment for moment in moments if begin <= moment <= end]
    if len(within) < 4:
        raise NothingMeasured(f"{len(within)} steps between {begin:.3f} and {end:.3f} are too few for a median")
    return statistics.median(right - left for left, right in itertools.pairwise(within))


def pause_of_survivors(
    steps: Mapping[int, Sequence[float]],
    survivors: Iterable[int],
    calm: tuple[float, float],
    change: tuple[float, float],
    switched_at: float | None = None,
) -> Pause:
    """The pause as the survivor that felt the longest did: `calm` is an interval before the change, `change` one that holds it.

    `switched_at`: when a planned change was formed. Its step is looked at alone: those after it are of another length.
    """
    gaps = {pid: longest_gap(steps[pid], *change) if switched_at is None else gap_before(steps[pid], switched_at) for pid in survivors}
    found = [(gap, median_step(steps[pid], *calm)) for pid, gap in gaps.items()]
    if not found:
        raise NothingMeasured("nobody survived the change")
    gap, step_s = max(found, key=lambda item: item[0].seconds - item[1])
    return Pause(pause_s=max(0.0, gap.seconds - step_s), step_s=step_s, resumed_at=gap.ended)


def pause_of_job(steps: Mapping[int, Sequence[float]], calm: tuple[float, float], change: tuple[float, float]) -> Pause:
    """The same where no process survives: the time in which no process of the job began a step."""
    step_s = statistics.median(
        median_step(each, *calm) for each in steps.values() if sum(calm[0] <= moment <= calm[1] for moment in each) >= 4
    )
    gap = longest_gap(sorted(moment for each in steps.values() for moment in each), *change)
    return Pause(pause_s=max(0.0, gap.seconds - step_s), step_s=step_s, resumed_at=gap.ended)


def steps_repeated(marks: Iterable[Mark], begin: float, end: float) -> int:
    """How many steps were taken again between two moments, by what rank 0 says: how far its count fell back, or stood still."""
    steps = [mark.step for mark in marks if mark.rank == 0 and begin <= mark.at <= end]
    return sum(max(0, before - after + 1) for before, after in itertools.pairwise(steps))
