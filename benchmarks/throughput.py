"""Steady steps a second against torchrun + DDP: `python -m benchmarks.throughput`. docs/benchmarks.md says how to read it.

The real stack is measured: `launch train` on a warm local Ray of the benchmark's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, Figure, against_itself, compare, finish
from benchmarks.runs import points_of, records, steady_steps_per_s
from benchmarks.sandbox import LAUNCH, ROOT, CommandFailed, Sandbox, in_turn

BATCH, MICRO_BATCH = 64, 16
LOG_EVERY_STEPS = 10
WARM_UP_S = 3.0
START_S = 180.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job of `workers` that may have up to `max`."""

    model: str
    workers: int
    max: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.workers}of{self.max}"

    @property
    def bar(self) -> Bar:
        return Bar(0.98 if self.workers == self.max else 0.95, "at_least")

    @property
    def threads(self) -> int:
        """CPU threads of a worker on both sides: the machine's cores shared among those that run."""
        return max(1, (os.cpu_count() or 1) // self.workers)

    @property
    def width(self) -> int:
        """Samples in one forward pass of a rank: what ours fuses at the most, ceil(shards / max), and so what the peer takes too."""
        return -(-(BATCH // MICRO_BATCH) // self.max) * MICRO_BATCH

    def overrides(self, steps: int) -> list[str]:
        return [
            f"+model={self.model}",
            "data=synthetic",
            "optimizer=sgd",
            "scheduler=none",
            "tracking=none",
            f"trainer.global_batch_size={BATCH}",
            f"trainer.micro_batch_size={MICRO_BATCH}",
            f"trainer.log_every_steps={LOG_EVERY_STEPS}",
            f"trainer.steps={steps}",
            "trainer.epochs=null",
            "checkpoint.every_steps=null",
            f"resources.threads={self.threads}",
            f"workers={{min:1,max:{self.max},target:{self.workers}}}",
        ]


CASES = {
    case.name: case
    for case in (
        *(Case(model=model, workers=workers, max=workers) for model in ("resnet", "mlp") for workers in (1, 2)),
        *(Case(model=model, workers=workers, max=most) for model in ("resnet", "mlp") for workers, most in ((1, 2), (1, 4), (2, 4))),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
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
            figures += measure(sandbox, ray, case, pairs, block_s, peer=DDP, bar=case.bar, name=case.name)
    settings = {
        "benchmark": "throughput",
        "pairs": pairs,
        "block_s": block_s,
        "warm_up_s": WARM_UP_S,
        "batch": BATCH,
        "micro_batch": MICRO_BATCH,
        "cases": [{"name": case.name, "threads": case.threads, "width": case.width, **asdict(case)} for case in cases],
    }
    return finish(figures, settings, options.output)


@dataclass(frozen=True)
class Peer:
    name: str
    command: Callable[[Case], list[str]]
    """What runs a case, but for the options that all peers take."""


def with_torchrun(case: Case) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.workers), "-m", "benchmarks.peers.ddp"]


DDP = Peer("torchrun + DDP", with_torchrun)


def measure(sandbox: Sandbox, ray: Path, case: Case, pairs: int, block_s: float, *, peer: Peer, bar: Bar, name: str) -> list[Figure]:
    # The very first of each is longer (Ray starts, files come from the disk): it tells how many steps a block needs, no more.
    trial = max(2 * LOG_EVERY_STEPS, 100)
    ours(sandbox, ray, case, trial, warm_up_s=0)
    rate = theirs(sandbox, case, peer, trial, warm_up_s=0)
    steps = int(rate * (block_s + WARM_UP_S)) // LOG_EVERY_STEPS * LOG_EVERY_STEPS + 2 * LOG_EVERY_STEPS
    found = in_turn(
        pairs,
        {
            case.name: lambda: ours(sandbox, ray, case, steps, warm_up_s=WARM_UP_S),
            peer.name: lambda: theirs(sandbox, case, peer, steps, warm_up_s=WARM_UP_S),
        },
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    same = against_itself(name, "steps/s", peer.name, found[peer.name], more_is_better=True)
    figure = compare(name, "steps/s", found[case.name], peer.name, found[peer.name], bar, more_is_better=True)
    return [figure, *([same] if same else [])]


def ours(sandbox: Sandbox, ray: Path, case: Case, steps: int, *, warm_up_s: float) -> float:
    """Steady steps a second of one run of `launch train`, from its rows of metrics."""
    runs = sandbox.folder / "runs"
    command = [LAUNCH, "train", *case.overrides(steps), f"runs={runs}", "-o", "json"]
    done = sandbox.run(command, timeout_s=limit(steps), more={"LAUNCHER_RAY_DIR": str(ray)})
    status = json.loads(done.output)
    if status["world_size"] not in (0, case.workers):
        raise CommandFailed(f"{case.name}: {status['world_size']} workers trained, {case.workers} were to")
    return steady_steps_per_s(points_of(records(runs / status["run_id"], "metrics")), warm_up_s=warm_up_s)


def theirs(sandbox: Sandbox, case: Case, peer: Peer, steps: int, *, warm_up_s: float) -> float:
    """The same of one run of a peer."""
    config = sandbox.folder / f"{case.name}.json"
    if not config.exists():
        config.write_text(json.dumps(configuration(sandbox, case)))
    command = [sys.executable, *peer.command(case), "--config", str(config), "--width", str(case.width)]
    command += ["--steps", str(steps), "--threads", str(case.threads), "--log-every", str(LOG_EVERY_STEPS)]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(case.threads)}
    done = sandbox.run(command, timeout_s=limit(steps), more=more)
    points = [tuple(json.loads(text)) for text in done.output.splitlines() if text.startswith("[")]
    return steady_steps_per_s(points, warm_up_s=warm_up_s)


def limit(steps: int) -> float:
    """A hang limit: a start, and a generous second a step (the slowest case takes a fraction of one)."""
    return START_S + steps


def configuration(sandbox: Sandbox, case: Case) -> Any:
    import yaml

    printed = sandbox.run([LAUNCH, "train", *case.overrides(1), "--cfg", "job", "--resolve"], timeout_s=60).output
    return yaml.safe_load(printed)


if __name__ == "__main__":
    sys.exit(main())
