"""What elasticity costs while nothing happens: `python -m benchmarks.elasticity`. docs/benchmarks.md says how to read it.

On: `launch train workers=1..4` at one, two and four workers, with its controller, connections, policies and records. Off: the same training
engine with the same spec and width, its ranks plain processes without any of these.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.report import Bar, Figure, finish
from benchmarks.sandbox import Sandbox
from benchmarks.throughput import WARM_UP_S, Case, Peer, measure

MOST = 4
BAR = Bar(0.99, "at_least")


def as_plain_processes(case: Case) -> list[str]:
    return ["-m", "benchmarks.peers.engine", "--workers", str(case.workers)]


OFF = Peer("the engine alone", as_plain_processes)
CASES = {
    f"{model}-{workers}of{MOST}": Case(model=model, workers=workers, max=MOST) for model in ("resnet", "mlp") for workers in (1, 2, MOST)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elasticity", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be given several times")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of blocks of each case (default 15)")
    parser.add_argument("--block-s", type=float, default=30.0, help="steady seconds of a block (default 30)")
    parser.add_argument("--quick", action="store_true", help="two short pairs: shows that it works; too few to decide a bar")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    pairs, block_s = (2, 5.0) if options.quick else (options.pairs, options.block_s)
    cases = [CASES[name] for name in options.case or CASES]
    figures: list[Figure] = []
    with Sandbox() as sandbox:
        ray = sandbox.ray_folder("r")
        for case in cases:
            figures += measure(sandbox, ray, case, pairs, block_s, peer=OFF, bar=BAR, name=f"elasticity {case.name}")
    settings = {
        "benchmark": "elasticity",
        "pairs": pairs,
        "block_s": block_s,
        "warm_up_s": WARM_UP_S,
        "cases": [{"name": case.name, "threads": case.threads, "width": case.width, **asdict(case)} for case in cases],
    }
    return finish(figures, settings, options.output)


if __name__ == "__main__":
    sys.exit(main())
