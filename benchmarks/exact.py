"""What exact mode costs: `python -m benchmarks.exact`. docs/benchmarks.md says how to read it.

The training engine alone, without Ray: each rank is a process that holds the same job three times and computes short blocks of
steps of each in turn, on one CPU thread (exact mode's default). With elastic.exact=true; without, but one shard at a time as well
(trainer.fuse=off), which leaves the price of the order of additions and of deterministic algorithms; and as it is by default, which
shows the whole price.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.port_store import PortStore
from benchmarks.report import Figure, against_itself, compare, finish
from benchmarks.sandbox import ROOT, CommandFailed
from benchmarks.throughput import BATCH, MICRO_BATCH, Case

EXACT = "exact"
ONE_BY_ONE = "fast, one shard at a time"
FUSED = "fast, shards fused"
SETTINGS = {EXACT: ["elastic.exact=true"], ONE_BY_ONE: ["trainer.fuse=off"], FUSED: []}
CASES = {case.name: case for case in (Case(model=model, workers=workers, max=workers) for model in ("resnet", "mlp") for workers in (1, 2))}
BLOCK_STEPS = {"resnet": 6, "mlp": 400}
SKIPPED = {"resnet": 1, "mlp": 20}
"""Steps at the beginning of a block that are not counted: buckets are made, caches filled."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be given several times")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of the three, in each case (default 50)")
    parser.add_argument("--quick", action="store_true", help="two rounds: shows that it works; too few for an interval")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    cases = [CASES[name] for name in options.case or CASES]
    figures: list[Figure] = []
    for case in cases:
        figures += measure(case, rounds)
    settings = {
        "benchmark": "exact",
        "rounds": rounds,
        "block_steps": BLOCK_STEPS,
        "skipped_steps": SKIPPED,
        "batch": BATCH,
        "micro_batch": MICRO_BATCH,
        "threads": 1,
        "cases": [{"name": case.name, **asdict(case)} for case in cases],
    }
    return finish(figures, settings, options.output)


def measure(case: Case, rounds: int) -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [context.Process(target=train, args=(case, rank, port, rounds, answers), daemon=True) for rank in range(case.workers)]
    for process in ranks:
        process.start()
    try:
        found = answered(answers, ranks)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    name = f"exact {case.name}"
    figures = [compare(name, "steps/s", found[EXACT], peer, found[peer], more_is_better=True) for peer in (ONE_BY_ONE, FUSED)]
    same = against_itself(name, "steps/s", ONE_BY_ONE, found[ONE_BY_ONE], more_is_better=True)
    return [*figures, *([same] if same else [])]


def answered(answers: Any, ranks: list[Any]) -> dict[str, list[float]]:
    """What rank 0 found. Raises CommandFailed where a rank ended before."""
    while True:
        try:
            found: dict[str, list[float]] = answers.get(timeout=1.0)
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in ranks):
                raise CommandFailed("a rank of the benchmark failed; its traceback is above") from None
        else:
            return found


class BlockDone(Exception):
    """Enough steps for one block."""


class Seconds:
    """An observer that times a block, then leaves the training."""

    def __init__(self, steps: int, skipped: int) -> None:
        self.steps, self.skipped = steps, skipped
        self.seconds: list[float] = []

    def applied(self, record: Any) -> None:
        self.seconds.append(record.seconds)
        if len(self.seconds) == self.steps + self.skipped:
            raise BlockDone

    def doing(self, what: str) -> None: ...

    def flags(self) -> Any:
        from launcher.training.step import StepFlags

        return StepFlags()

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        raise AssertionError("a block is shorter than the training")

    def saved(self, part: Any, seconds: float) -> None:
        raise AssertionError("nothing is saved")

    def save_failed(self, step: int, error: Exception) -> None:
        raise error

    def rate(self) -> float:
        """Steps a second of the block that has just ended."""
        counted = self.seconds[self.skipped :]
        self.seconds = []
        return len(counted) / sum(counted)


def train(case: Case, rank: int, port: int, rounds: int, answers: Any) -> None:
    """One rank; rank 0 answers with steps a second of each block."""
    import torch

    from launcher.config.load import compose
    from launcher.core.store import open_store
    from launcher.core.types import RunId
    from launcher.record.run_store import RunStore
    from launcher.training.comm.collective import Collective
    from launcher.training.trainer import Trainer

    store = PortStore(port, serves=rank == 0)
    collective = Collective.form(store, generation=1, rank=rank, world_size=case.workers, device="cpu", timeout_s=300.0)
    steps, skipped = BLOCK_STEPS[case.model], SKIPPED[case.model]
    length = (rounds + 2) * (steps + skipped)
    trainers, observers = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in SETTINGS.items():
            config = compose([*case.overrides(length), "resources.threads=1", *settings, f"runs={folder}"], folder=ROOT)
            observer: Any = Seconds(steps, skipped)
            observers[name] = observer
            made = Trainer(config, RunStore(open_store(folder), RunId("benchmark")), observer, device="cpu", threads=1)
            made.build()
            made.warm_up()
            trainers[name] = made

        def block(name: str) -> float:
            torch.use_deterministic_algorithms(name == EXACT)
            try:
                trainers[name].run(collective)
            except BlockDone:
                return float(observers[name].rate())
            raise AssertionError("the training is longer than its blocks")

        found: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for number in range(-1, rounds):
            for name in list(SETTINGS) if number % 2 == 0 else reversed(list(SETTINGS)):
                rate = block(name)
                if number >= 0:
                    found[name].append(rate)
            if rank == 0 and number >= 0:
                told = ", ".join(f"{name} {values[-1]:.4g}" for name, values in found.items())
                print(f"{case.name} {number + 1}/{rounds}: {told}", file=sys.stderr, flush=True)
    if rank == 0:
        answers.put(found)


if __name__ == "__main__":
    sys.exit(main())
