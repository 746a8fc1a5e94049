"""From pairs of measurements to a verdict, and the report that benchmarks print. Pure but for `finish`.

Machines are noisy, so ours and a peer are measured in turn, next to each other, and compared pair by pair. The figure
is the median of the pairs' ratios (or differences) with its 95 % interval; a bar holds or fails only when the whole
interval is on one side of it. An A/A row compares a peer with itself: what it is off from 1 is the noise.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

CONFIDENCE = 0.95
PACKAGES = ("launcher", "torch", "ray", "torchft-nightly", "hydra-core", "click")


@dataclass(frozen=True)
class Bar:
    limit: float
    sense: Literal["at_least", "at_most"]
    of: Literal["ratio", "difference", "value"] = "ratio"
    """Which figure is held against the limit: ours / theirs, ours - theirs, or ours itself."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the report. Peer fields are None where there is no peer, `holds` None while it is not decided."""

    name: str
    unit: str
    ours: float
    """Median."""
    ours_worst: float
    peer: str | None = None
    theirs: float | None = None
    """Median."""
    theirs_worst: float | None = None
    ratio: float | None = None
    """Median of ours / theirs over the pairs."""
    difference: float | None = None
    """Median of ours - theirs over the pairs."""
    bar: float | None = None
    sense: str | None = None
    """at_least or at_most: on which side of the bar the figure must be."""
    of: str = "ratio"
    """What bar and interval are about: ratio, difference, or the value itself."""
    holds: bool | None = None
    n: int
    """Pairs, or single measurements where there is no peer."""
    interval: tuple[float, float] | None = None
    """95 % interval of the median; None where there are too few measurements for one (fewer than 6)."""


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of the median by order statistics: exact, whatever the distribution of the values.

    With k the largest number for which 1 - 2 P(X < k) >= confidence, X binomial of len(values) and 1/2, it reaches from the
    k-th smallest to the k-th largest value. None where even smallest to largest is not sure enough.
    """
    ordered = sorted(values)
    n = len(ordered)
    below = 0.0
    k = 0
    for candidate in range(1, n // 2 + 1):
        below += math.comb(n, candidate - 1) / 2**n
        if 1 - 2 * below < confidence:
            break
        k = candidate
    return (ordered[k - 1], ordered[n - k]) if k else None


def verdict(interval: tuple[float, float] | None, bar: Bar | None) -> bool | None:
    """True: the bar holds; False: it does not; None: not decided by these measurements."""
    if interval is None or bar is None:
        return None
    low, high = interval
    if bar.sense == "at_most":
        low, high, limit = -high, -low, -bar.limit
    else:
        limit = bar.limit
    if low >= limit:
        return True
    return False if high < limit else None


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    bar: Bar | None = None,
    *,
    more_is_better: bool,
) -> Figure:
    """Ours against a peer; the i-th of both were measured next to each other."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{name}: {len(ours)} measurements of ours, {len(theirs)} of {peer}; they come in pairs")
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    interval = median_interval(differences if bar and bar.of == "difference" else ratios)
    worst = min if more_is_better else max
    return Figure(
        name=name,
        unit=unit,
        ours=statistics.median(ours),
        ours_worst=worst(ours),
        peer=peer,
        theirs=statistics.median(theirs),
        theirs_worst=worst(theirs),
        ratio=statistics.median(ratios),
        difference=statistics.median(differences),
        bar=bar.limit if bar else None,
        sense=bar.sense if bar else None,
        of=bar.of if bar else "ratio",
        holds=verdict(interval, bar),
        n=len(ratios),
        interval=interval,
    )


def alone(name: str, unit: str, ours: Sequence[float], bar: Bar | None = None, *, more_is_better: bool) -> Figure:
    """A figure without a peer; interval and bar, if any, are of the value itself."""
    worst = min if more_is_better else max
    interval = median_interval(ours)
    return Figure(
        name=name,
        unit=unit,
        ours=statistics.median(ours),
        ours_worst=worst(ours),
        bar=bar.limit if bar else None,
        sense=bar.sense if bar else None,
        of="value",
        holds=verdict(interval, bar),
        n=len(ours),
        interval=interval,
    )


def apart(name: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float], bar: Bar | None = None) -> Figure:
    """Ours against a peer that was measured fewer times, not in pairs; less is better and the peer's are above 0.

    The ratio is of the medians. Its interval is as wide as can be: the interval of our median (or all of ours, where they are too few for one)
    against the least and the most of theirs.
    """
    low, high = median_interval(ours) or (min(ours), max(ours))
    interval = (low / max(theirs), high / min(theirs))
    return Figure(
        name=name,
        unit=unit,
        ours=statistics.median(ours),
        ours_worst=max(ours),
        peer=peer,
        theirs=statistics.median(theirs),
        theirs_worst=max(theirs),
        ratio=statistics.median(ours) / statistics.median(theirs),
        difference=statistics.median(ours) - statistics.median(theirs),
        bar=bar.limit if bar else None,
        sense=bar.sense if bar else None,
        holds=verdict(interval, bar),
        n=min(len(ours), len(theirs)),
        interval=interval,
    )


def counted(name: str, unit: str, value: float, bar: Bar) -> Figure:
    """A fact, counted once and without noise: the bar holds or not."""
    holds = value >= bar.limit if bar.sense == "at_least" else value <= bar.limit
    return Figure(name=name, unit=unit, ours=value, ours_worst=value, bar=bar.limit, sense=bar.sense, of="value", holds=holds, n=1)


def against_itself(name: str, unit: str, peer: str, values: Sequence[float], *, more_is_better: bool) -> Figure | None:
    """The A/A row: each measurement of a peer against its next one, in disjoint pairs; None where there is no pair."""
    first, second = values[0:-1:2], values[1::2]
    if not first:
        return None
    return compare(f"A/A {name}", unit, first, peer, second, more_is_better=more_is_better)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def device() -> str:
    """The machine in words: processor, cores that this process may use, GPUs as the driver names them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), "")
    names = [
        line.partition(":")[2].strip()
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines()
        if line.startswith("Model")
    ]
    return ", ".join([f"{model or platform.processor() or platform.machine()}, {cores} cores", *names])


def document(figures: Sequence[Figure], settings: dict[str, object]) -> dict[str, object]:
    return {
        "device": device(),
        "versions": versions(),
        "settings": settings,
        "results": [asdict(figure) for figure in figures],
    }


def exit_code(figures: Sequence[Figure]) -> int:
    """1 when a bar fails; a bar that is not decided is no failure."""
    return int(any(figure.holds is False for figure in figures))


def line(figure: Figure) -> str:
    """One figure for a person."""
    text = f"{figure.name}: {_number(figure.ours)} {figure.unit} (worst {_number(figure.ours_worst)})"
    if figure.theirs is not None and figure.theirs_worst is not None:
        text += f", {figure.peer} {_number(figure.theirs)} (worst {_number(figure.theirs_worst)})"
        shown = figure.difference if figure.of == "difference" else figure.ratio
        text += f", {figure.of} {shown:.3f}"
    if figure.interval is not None:
        text += f" [{figure.interval[0]:.3f}, {figure.interval[1]:.3f}]"
    text += f", n={figure.n}"
    if figure.bar is not None:
        words = {True: "holds", False: "FAILS", None: "unresolved"}[figure.holds]
        text += f", bar {'>=' if figure.sense == 'at_least' else '<='} {figure.bar:g}: {words}"
    return text


def _number(value: float) -> str:
    return f"{value:.4g}"


def finish(figures: Sequence[Figure], settings: dict[str, object], output: Path | None) -> int:
    """Print the report as JSON on standard output, and into a file where one is named; the exit code."""
    text = json.dumps(document(figures, settings), indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
    for figure in figures:
        print(line(figure), file=sys.stderr)
    return exit_code(figures)
