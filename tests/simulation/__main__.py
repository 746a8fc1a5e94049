"""`python -m tests.simulation -n 10000` runs schedules on all cores; `--seed 1234 --trace` tells the story of one."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulation.schedule import Result, play


def many(first: int, count: int, processes: int | None = None) -> list[Result]:
    processes = processes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _spare_the_collector()
    if processes == 1:
        return [play(seed) for seed in range(first, first + count)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return list(pool.imap(play, range(first, first + count), chunksize=20))


def _spare_the_collector() -> None:
    """What is imported stays, and a schedule makes little garbage in circles: looking for it takes a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("-n", type=int, default=10_000, help="how many schedules")
    parser.add_argument("--seed", type=int, default=None, help="the first seed; with --trace, the only one")
    parser.add_argument("--trace", action="store_true", help="tell everything that happens under one seed")
    parser.add_argument("--coverage", action="store_true", help="print how often each transition was taken")
    options = parser.parse_args()
    if options.trace:
        result = play(options.seed or 0, tracing=True)
        print("\n".join(result.story))
        return int(bool(result.violation))
    begun = time.monotonic()
    results = many(options.seed or 0, options.n)
    failed = [result for result in results if result.violation]
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    if options.coverage:
        for name, count in sorted(counts.items()):
            print(f"{count:9d}  {name}")
    for result in failed[:40]:
        print(f"seed {result.seed}: {result.violation[:300]}")
    kinds = Counter(result.invariant for result in failed)
    ends = Counter(result.end for result in results)
    print(f"{len(results)} schedules in {time.monotonic() - begun:.1f} s, {len(failed)} failed {dict(kinds)}, ends {dict(ends)}")
    if failed:
        print("replay: python -m tests.simulation --seed SEED --trace")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
