"""What elasticity costs while nothing happens: `python -m benchmarks.elasticity`. docs/benchmarks.md says how to read it.

On: `launch train workers=1..4` at one, two and four workers, with its controller, link, policy and records. Off: the same training
engine with the same spec and width, its ranks plain processes without any of these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Bar, Figure, against_itself, compare, finish
from benchmarks.runs import steady_steps_per_s
from benchmarks.sandbox import LAUNCH, ROOT, Sandbox, in_turn
from benchmarks.throughput import LOG_EVERY_STEPS, WARM_UP_S, Case, limit, ours

MOST = 4
OFF = "the engine alone"
BAR = Bar(0.99, "at_least")
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
            figures += measure(sandbox, ray, case, pairs, block_s)
    settings = {
        "benchmark": "elasticity",
        "pairs": pairs,
        "block_s": block_s,
        "warm_up_s": WARM_UP_S,
        "cases": [{"name": case.name, "threads": case.threads, "width": case.width, **asdict(case)} for case in cases],
    }
    return finish(figures, settings, options.output)


def measure(sandbox: Sandbox, ray: Path, case: Case, pairs: int, block_s: float) -> list[Figure]:
    trial = max(2 * LOG_EVERY_STEPS, 100)
    ours(sandbox, ray, case, trial, warm_up_s=0)
    rate = engine_alone(sandbox, case, trial, warm_up_s=0)
    steps = int(rate * (block_s + WARM_UP_S)) // LOG_EVERY_STEPS * LOG_EVERY_STEPS + 2 * LOG_EVERY_STEPS
    found = in_turn(
        pairs,
        {
            case.name: lambda: ours(sandbox, ray, case, steps, warm_up_s=WARM_UP_S),
            OFF: lambda: engine_alone(sandbox, case, steps, warm_up_s=WARM_UP_S),
        },
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    name = f"elasticity {case.name}"
    same = against_itself(name, "steps/s", OFF, found[OFF], more_is_better=True)
    return [compare(name, "steps/s", found[case.name], OFF, found[OFF], BAR, more_is_better=True), *([same] if same else [])]


def engine_alone(sandbox: Sandbox, case: Case, steps: int, *, warm_up_s: float) -> float:
    """Steady steps a second of the engine without anything around it."""
    printed = sandbox.run([LAUNCH, "train", *case.overrides(steps), "--cfg", "job", "--resolve"], timeout_s=60).output
    document: Any = yaml.safe_load(printed)
    config = sandbox.folder / f"{case.name}-{steps}.json"
    config.write_text(json.dumps(document))
    command = [sys.executable, "-m", "benchmarks.peers.engine", "--config", str(config), "--workers", str(case.workers)]
    command += ["--threads", str(case.threads), "--log-every", str(LOG_EVERY_STEPS)]
    done = sandbox.run(command, timeout_s=limit(steps), more={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(case.threads)})
    points = [tuple(json.loads(text)) for text in done.output.splitlines() if text.startswith("[")]
    return steady_steps_per_s(points, warm_up_s=warm_up_s)


if __name__ == "__main__":
    sys.exit(main())
