"""What a change of the group costs the training: `python -m benchmarks.resize`. docs/benchmarks.md says what each figure means.

Ours is the whole stack by the real command; Ray Train's elastic mode and torchft do the cases that they can, in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import raw_copy
from benchmarks.changes import CASES, MODELS, MOST, RAY_TRAIN, TORCHFT, Case, Measured, Model, job_overrides, log, measure_ours
from benchmarks.report import Bar, Figure, alone, apart, finish
from benchmarks.sandbox import LAUNCH, PEERS, ROOT, CommandFailed, Sandbox

PEER_S = 3600.0
"""A hang limit for all cases of one peer and model."""
COPIES = 15
TWENTY_TIMES = ("grow", "kill")
"""Cases in which ours is at least 20 times shorter than Ray Train's elastic mode."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resize", description=__doc__)
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this model; may be given several times")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be given several times")
    parser.add_argument("--n", type=int, default=10, help="changes of each case of ours (default 10)")
    parser.add_argument("--peer-n", type=int, default=3, help="changes of each case of a peer, 15 to 75 s each (default 3; 0: no peers)")
    parser.add_argument("--quick", action="store_true", help="two of ours and one of each peer: shows that it works; decides nothing")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    n, peer_n = (2, 1) if options.quick else (options.n, options.peer_n)
    models = [MODELS[name] for name in options.model or MODELS]
    cases = [CASES[name] for name in options.case or CASES]
    figures: list[Figure] = []
    changes: list[dict[str, Any]] = []
    missing: list[str] = []
    failed: list[str] = []
    with Sandbox() as sandbox:
        for model in models:
            copies = raw_copy.measure(model.state, COPIES)
            theirs = measure_peers(sandbox, model, cases, peer_n, missing) if peer_n else {}
            ours = measure_ours(sandbox, model, cases, n, failed)
            copies += raw_copy.measure(model.state, COPIES)
            figures.append(alone(f"{model.name}: raw copy of {model.state / 1e6:.1f} MB", "s", copies, more_is_better=False))
            figures += [
                row for case in cases if ours[case.name] for row in rows(model, case, ours[case.name], theirs, statistics.median(copies))
            ]
            changes += [{"model": model.name, **asdict(each)} for case in cases for each in ours[case.name]]
            changes += [{"model": model.name, "peer": peer, **row} for peer, found in theirs.items() for row in found]
    for text in (*missing, *failed):
        log(text)
    settings = {
        "benchmark": "resize",
        "n": n,
        "peer_n": peer_n,
        "models": [asdict(model) for model in models],
        "cases": [asdict(case) for case in cases],
        "missing": missing,
        "failed": failed,
        "changes": changes,
    }
    return max(finish(figures, settings, options.output), int(bool(failed)))


def rows(model: Model, case: Case, ours: list[Measured], theirs: dict[str, list[dict[str, Any]]], copy_s: float) -> list[Figure]:
    """The figures of one case: pause, time to the first step, losses, and the ratio to each peer, the better one first."""
    name = f"{model.name} {case.name} {case.begins}->{case.ends}"
    limit = case.limit_s + (1.3 * copy_s if case.planned and model.name != "mlp" else 0.0)
    pauses = [each.pause_s for each in ours]
    found = [
        alone(f"{name}: pause", "s", pauses, Bar(limit, "at_most", "value"), more_is_better=False),
        alone(f"{name}: to the first step", "s", [each.first_step_s for each in ours], more_is_better=False),
        alone(
            f"{name}: committed steps lost", "steps", [each.steps_lost for each in ours], Bar(0, "at_most", "value"), more_is_better=False
        ),
        alone(f"{name}: samples repeated", "samples", [each.samples_repeated for each in ours], more_is_better=False),
    ]
    if case.name == "grow":
        found.append(alone(f"{name}: survivors' step while it warms up", "x", [each.slowdown for each in ours], more_is_better=False))
    per_peer = {peer: [row for row in theirs.get(peer, []) if row["case"] == case.name] for peer in case.peers}
    by_pause = sorted((statistics.median(row["pause_s"] for row in found), peer) for peer, found in per_peer.items() if found)
    for _, peer in by_pause:
        bar = Bar(1 / 20, "at_most") if peer == RAY_TRAIN and case.name in TWENTY_TIMES else None
        found.append(apart(f"{name}: pause", "s", pauses, peer, [max(row["pause_s"], 1e-6) for row in per_peer[peer]], bar))
        repeated = [row["steps_repeated"] for row in per_peer[peer]]
        log(f"{name}: {peer} repeats or throws away {', '.join(map(str, repeated))} steps")
    return found


def measure_peers(sandbox: Sandbox, model: Model, cases: list[Case], n: int, missing: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What each peer printed, for the cases that it can do."""
    found: dict[str, list[dict[str, Any]]] = {}
    for peer, module, package, extra in (
        (TORCHFT, "torchft_ddp", "torchft", []),
        (RAY_TRAIN, "ray_train_elastic", "ray.train", ["--checkpoint-every", str(model.checkpoint_every)]),
    ):
        if not any(peer in case.peers for case in cases):
            continue
        if importlib.util.find_spec(package) is None:
            missing.append(f"{peer} is not there: install the `bench` extra")
            continue
        folder = sandbox.folder / "p"
        folder.mkdir()
        config = peer_configuration(sandbox, model, folder)
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", "--config", str(config), "--folder", str(folder)]
        command += ["--max", str(MOST), "--threads", "1", "--n", str(n), *extra]
        more = {"PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}", "OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1"}
        try:
            output = sandbox.run(command, timeout_s=PEER_S, more=more).output
            found[peer] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        except CommandFailed as error:
            missing.append(f"{peer} failed with {model.name}: {error}")
        finally:
            sandbox.sweep()
            shutil.rmtree(folder, ignore_errors=True)
        for row in found.get(peer, []):
            log(f"{peer} {model.name} {row['case']}: {row['pause_s']:.3f} s")
    return found


def peer_configuration(sandbox: Sandbox, model: Model, folder: Path) -> Path:
    """The job's configuration as a file for a peer, writing its steps into `folder`."""
    import yaml

    words = [f"{key}={value}" for key, value in job_overrides(model).items()]
    printed = sandbox.run([LAUNCH, "train", *words, f"+model.log={folder}", "--cfg", "job", "--resolve"], timeout_s=60).output
    path = folder / "config.json"
    path.write_text(json.dumps(yaml.safe_load(printed)))
    return path


if __name__ == "__main__":
    sys.exit(main())
