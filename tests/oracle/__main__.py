"""`python -m tests.oracle --minutes 60 --seed 0` plays cases until the time is up; `--case` plays one, as a failure printed it."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from tests.oracle.cases import HISTORIES, KINDS, Case
from tests.oracle.processes import Task, search_all
from tests.oracle.search import CASES, Found, told
from tests.oracle.verdict import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--minutes", type=float, default=None, help="how long; without it, one seed for each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    parser.add_argument("--cases", type=int, default=CASES, help="how many of each kind and seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--case", help="a single case, as JSON")
    options = parser.parse_args()
    if options.case:
        return play_one(options.case)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    results = list(search_for(options.kind or KINDS, options.seed, options.cases, options.processes, end))
    failed = [found for found in results if found.smallest is not None]
    print(table(results))
    for found in failed:
        print(f"\nFAILED {found}")
    print(f"\n{sum(sum(found.played.values()) for found in results)} cases, {len(failed)} kinds failed")
    return int(bool(failed))


def play_one(text: str) -> int:
    """Play the case that a JSON text describes."""
    try:
        print(f"as in the plain loop: {play(msgspec.json.decode(text, type=Case)):.3g} of what is allowed")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was asked for
        print(told(error))
        return 1
    return 0


def search_for(kinds: Iterable[str], seed: int, count: int, processes: int, end: float | None) -> Iterator[Found]:
    """One seed after the other through all kinds, until the time is up; a kind that has failed is left out from then on."""
    left = list(kinds)

    def tasks() -> Iterator[Task]:
        for turn in itertools.count(seed):
            for kind in list(left):
                if end is not None and time.monotonic() > end:
                    return
                yield Task(kind, turn, count)
            if end is None or not left:
                return

    for found in search_all(tasks(), processes):
        yield found
        if found.smallest is not None and found.kind in left:
            left.remove(found.kind)
            print(f"{found.kind}: failed with seed {found.seed}", file=sys.stderr)


def table(results: Iterable[Found]) -> str:
    """Kinds and histories: how many cases, and their largest difference as a part of what is allowed."""
    played: Counter[tuple[str, str]] = Counter()
    largest: dict[tuple[str, str], float] = {}
    for found in results:
        for history, count in found.played.items():
            played[found.kind, history] += count
        for history, difference in found.largest.items():
            largest[found.kind, history] = max(largest.get((found.kind, history), 0.0), difference)
    lines = ["cases / largest difference as a part of what is allowed", f"{'':26}" + "".join(f"{history:>16}" for history in HISTORIES)]
    for kind in dict.fromkeys(kind for kind, _ in played):
        cells = [f"{played[kind, history]} / {largest.get((kind, history), 0.0):.0e}" for history in HISTORIES]
        lines.append(f"{kind:26}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
