"""How long until something happens: `python -m benchmarks.startup`. docs/benchmarks.md says what each figure means."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, Figure, against_itself, alone, compare, finish
from benchmarks.runs import first_step_at
from benchmarks.sandbox import LAUNCH, PEERS, ROOT, Sandbox, in_turn

JOB = ("+model=mlp", "data=digits", "optimizer=sgd", "scheduler=none", "tracking=none", "trainer.steps=3", "trainer.epochs=null")
COMMAND_S = 60.0
START_S = 300.0
CASES = ("help", "config", "import", "cold", "warm")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="only this part; may be given several times")
    parser.add_argument("--pairs", type=int, default=21, help="pairs of each command that takes a second or so (default 21)")
    parser.add_argument("--starts", type=int, default=9, help="starts of each kind with a cold or a warm Ray (default 9)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few pairs: shows that it works; too few to decide a bar")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    pairs, starts = (3, 1) if options.quick else (options.pairs, options.starts)
    figures: list[Figure] = []
    with Sandbox() as sandbox:
        for case in options.case or CASES:
            if case == "cold":
                figures += cold(sandbox, starts, options.workers)
            elif case == "warm":
                figures += warm(sandbox, starts, options.workers)
            else:
                figures += commands(sandbox, case, pairs)
    settings = {"benchmark": "startup", "cases": options.case or list(CASES), "pairs": pairs, "starts": starts, "workers": options.workers}
    return finish(figures, settings, options.output)


def commands(sandbox: Sandbox, case: str, pairs: int) -> list[Figure]:
    """Whole processes against each other: (a) help, (b) configuration, (e) import."""
    python = sys.executable
    ours, peer, theirs, bar = {
        "help": ([LAUNCH, "--help"], "python -c 'import click'", [python, "-c", "import click"], Bar(1.3, "at_most")),
        "config": (
            [LAUNCH, "train", "--cfg", "job"],
            "minimal Hydra application",
            [python, str(PEERS / "minimal_hydra.py"), "--cfg", "job"],
            Bar(1.3, "at_most"),
        ),
        "import": ([python, "-c", "import launcher"], "python -c pass", [python, "-c", "pass"], Bar(0.1, "at_most", "difference")),
    }[case]
    name = {"help": "launch --help", "config": "launch train --cfg job", "import": "import launcher"}[case]

    def seconds(command: list[str]) -> Callable[[], float]:
        return lambda: sandbox.run(command, timeout_s=COMMAND_S).seconds

    in_turn(1, {name: seconds(ours), peer: seconds(theirs)}, _ignore)
    found = in_turn(pairs, {name: seconds(ours), peer: seconds(theirs)}, _log)
    return _figures(name, found[name], peer, found[peer], bar)


def cold(sandbox: Sandbox, starts: int, workers: int) -> list[Figure]:
    """From the command to the first committed step, nothing running before: ours, a bare script, Ray Train."""
    config = configuration(sandbox, workers)
    number = 0

    def ours() -> float:
        nonlocal number
        number += 1
        ray = sandbox.ray_folder(f"r{number}")
        try:
            return first_step(sandbox, ray, workers)
        finally:
            sandbox.stop_ray(ray)
            sandbox.sweep()

    def peer(module: str) -> Callable[[], float]:
        def measure() -> float:
            folder = sandbox.folder / "p"
            folder.mkdir()
            command = [sys.executable, "-m", f"benchmarks.peers.{module}", "--config", str(config), "--folder", str(folder)]
            command += ["--workers", str(workers), "--threads", "1"]
            try:
                done = sandbox.run(command, timeout_s=START_S, more={"PYTHONPATH": str(ROOT)})
            finally:
                sandbox.sweep()
                shutil.rmtree(folder, ignore_errors=True)
            return float(json.loads(done.output.splitlines()[-1])["first_step_at"]) - done.started_at

        return measure

    bare, train = "bare script (ray.init, actors, DDP)", "Ray Train TorchTrainer"
    name = f"cold Ray, command to first step, workers={workers}"
    found = in_turn(starts, {name: ours, bare: peer("bare_ray"), train: peer("ray_train")}, _log)
    return [
        *_figures(name, found[name], bare, found[bare], Bar(1.25, "at_most")),
        compare(name, "s", found[name], train, found[train], Bar(0.5, "at_most"), more_is_better=False),
    ]


def warm(sandbox: Sandbox, starts: int, workers: int) -> list[Figure]:
    """The same where the local Ray is up already."""
    ray = sandbox.ray_folder("w")
    name = f"warm Ray, command to first step, workers={workers}"
    try:
        first_step(sandbox, ray, workers)
        found = in_turn(starts, {name: lambda: first_step(sandbox, ray, workers)}, _log)
    finally:
        sandbox.stop_ray(ray)
        sandbox.sweep()
    return [alone(name, "s", found[name], more_is_better=False)]


def first_step(sandbox: Sandbox, ray: Path, workers: int) -> float:
    """Seconds from the start of `launch train` to its first committed step, as the run's events tell it."""
    runs = sandbox.folder / "runs"
    command = [LAUNCH, "train", *JOB, f"workers={workers}", "resources.threads=1", f"runs={runs}", "-o", "json"]
    done = sandbox.run(command, timeout_s=START_S, more={"LAUNCHER_RAY_DIR": str(ray)})
    return first_step_at(runs / json.loads(done.output)["run_id"]) - done.started_at


def configuration(sandbox: Sandbox, workers: int) -> Path:
    """The job's configuration as a file for the peers."""
    import yaml

    printed = sandbox.run([LAUNCH, "train", *JOB, f"workers={workers}", "--cfg", "job", "--resolve"], timeout_s=COMMAND_S).output
    path = sandbox.folder / "config.json"
    document: dict[str, Any] = yaml.safe_load(printed)
    path.write_text(json.dumps(document))
    return path


def _figures(name: str, ours: list[float], peer: str, theirs: list[float], bar: Bar) -> list[Figure]:
    same = against_itself(name, "s", peer, theirs, more_is_better=False)
    return [compare(name, "s", ours, peer, theirs, bar, more_is_better=False), *([same] if same else [])]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ignore(text: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
