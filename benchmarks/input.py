"""Reading heavy data: `python -m benchmarks.input`. docs/benchmarks.md says how to read it.

The training engine alone with `resources.data_workers`, against a plain loop over torch's DataLoader with as many processes, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.input import CHANGES
from benchmarks.peers.pictures import make_pictures
from benchmarks.report import Bar, Figure, against_itself, alone, compare, finish
from benchmarks.sandbox import ROOT, Sandbox

BATCH, MICRO_BATCH = 32, 8
PEER = "plain loop over DataLoader"
CASES = {"reading": {"repeats": 0, "shrink": 8}, "training": {"repeats": 4, "shrink": 2}}
"""The model's weight: next to nothing, so that steps wait for data; or so much that they do not."""
SLACK_S = 0.25
"""What a change may cost beside a step."""
WAIT = 0.02
HANG_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__)
    parser.add_argument("--case", action="append", choices=[*CASES, "changes"], help="only this case; may be given several times")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs of each case (default 9)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (default 60)")
    parser.add_argument("--pictures", type=int, default=2000, help="files in the folder (default 2000)")
    parser.add_argument("--processes", type=int, default=max(1, cores - 1), help="that read, on both sides (default: all cores but one)")
    parser.add_argument("--quick", action="store_true", help="two short pairs: shows that it works; too few to decide a bar")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    if options.quick:
        options.pairs, options.steps, options.pictures = 2, 16, 300
    cases = options.case or [*CASES, "changes"]
    figures: list[Figure] = []
    with Sandbox() as sandbox:
        folder = sandbox.folder / "pictures"
        folder.mkdir()
        make_pictures(folder, options.pictures)
        for case in cases:
            config = sandbox.folder / f"{case}.json"
            config.write_text(json.dumps(job(folder, CASES.get(case, CASES["reading"]), options.steps, options.processes)))
            figures += changes(sandbox, config, options.pairs) if case == "changes" else measure(sandbox, case, config, options.pairs)
    settings = {
        "benchmark": "input",
        "pairs": options.pairs,
        "steps": options.steps,
        "pictures": options.pictures,
        "processes": options.processes,
        "batch": BATCH,
        "micro_batch": MICRO_BATCH,
        "cases": cases,
    }
    return finish(figures, settings, options.output)


def job(folder: Path, model: dict[str, int], steps: int, processes: int) -> dict[str, Any]:
    """The configuration of both sides."""
    return {
        "workers": 1,
        "seed": 0,
        "model": {"_target_": "benchmarks.peers.pictures.Convolutions", **model},
        "data": {"_target_": "benchmarks.peers.pictures.Pictures", "folder": str(folder)},
        "task": {"_target_": "launcher.training.tasks.Classification"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01},
        "trainer": {"steps": steps, "global_batch_size": BATCH, "micro_batch_size": MICRO_BATCH},
        "resources": {"threads": 1, "data_workers": processes},
        "checkpoint": {"every_steps": None},
        **{group: {} for group in ("elastic", "backend", "tracking", "code")},
    }


def measure(sandbox: Sandbox, case: str, config: Path, pairs: int) -> list[Figure]:
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(pairs):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            found[side].append(one(sandbox, side, config))
            print(f"{case} {number + 1}/{pairs} {side}: {found[side][-1]}", file=sys.stderr, flush=True)

    def values(side: str, key: str) -> list[float]:
        return [run[key] for run in found[side]]

    figures = []
    for key, what in (("samples_per_s", "training"), ("held_out_per_s", "evaluation")):
        name = f"{case}: {what}"
        rates = values("ours", key), values("theirs", key)
        figures.append(compare(name, "samples/s", rates[0], PEER, rates[1], Bar(0.98, "at_least"), more_is_better=True))
        same = against_itself(name, "samples/s", PEER, rates[1], more_is_better=True)
        figures += [same] if same else []
    # Where the peer's steps wait for data, too, the processes are too few, and there is nothing to hold ours against.
    bar = Bar(WAIT, "at_most", "value") if max(values("theirs", "waited")) <= WAIT else None
    figures.append(alone(f"{case}: wait for data, ours", "of the time", values("ours", "waited"), bar, more_is_better=False))
    figures.append(alone(f"{case}: wait for data, {PEER}", "of the time", values("theirs", "waited"), more_is_better=False))
    return figures


def changes(sandbox: Sandbox, config: Path, pairs: int) -> list[Figure]:
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CHANGES}
    for number in range(pairs):
        for name, (step_s, pause_s) in one(sandbox, "changes", config).items():
            found[name][0].append(step_s)
            found[name][1].append(pause_s)
            print(f"changes {number + 1}/{pairs} {name}: step {step_s:.3g}, pause {pause_s:.3g}", file=sys.stderr, flush=True)
    bar = Bar(SLACK_S, "at_most", "difference")
    return [
        compare(f"pause of {name}", "s", pauses, "a step of reading", steps, bar, more_is_better=False)
        for name, (steps, pauses) in found.items()
    ]


def one(sandbox: Sandbox, side: str, config: Path) -> Any:
    command = [sys.executable, "-m", "benchmarks.peers.input", side, "--config", str(config)]
    return json.loads(sandbox.run(command, timeout_s=HANG_S, more={"PYTHONPATH": str(ROOT)}).output)


if __name__ == "__main__":
    sys.exit(main())
