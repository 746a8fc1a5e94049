"""One run of a job on pictures: the training engine alone with reading processes, or a plain loop over torch's DataLoader.

Prints a line of JSON: samples a second while training, the part of that time for which data was waited for, and held-out samples a second.
For ours also what changes of the membership cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers.quiet_observer import QuietObserver

WARM_UP = 6
"""Steps that are not counted: processes start, and read ahead more than in a step later on."""
CHANGES = {"2 -> 1 workers": ((2, 0), (1, 0)), "1 -> 2 workers": ((1, 0), (2, 1)), "rank 0 -> rank 1": ((2, 0), (2, 1))}
"""World size and rank before, and after."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "theirs", "changes"])
    parser.add_argument("--config", required=True)
    options = parser.parse_args()
    config = json.loads(Path(options.config).read_text())
    print(json.dumps({"ours": ours, "theirs": theirs, "changes": changes}[options.side](config)))


def summary(marks: list[tuple[float, float]], batch: int) -> dict[str, float]:
    """`marks`: when each step was done, and for how long data was waited until then, both in seconds."""
    (start, waited), (end, waited_then) = marks[WARM_UP - 1], marks[-1]
    return {"samples_per_s": (len(marks) - WARM_UP) * batch / (end - start), "waited": (waited_then - waited) / (end - start)}


class Marks(QuietObserver):
    """An observer that notes times."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.evaluating: list[float] = []
        self.trainer: Any = None

    def applied(self, record: Any) -> None:
        self.steps.append((time.perf_counter(), self.trainer._feed.waited_s))

    def doing(self, what: str) -> None:
        if what == "evaluating" or len(self.evaluating) % 2:
            self.evaluating.append(time.perf_counter())


def ours(config: dict[str, Any]) -> dict[str, float]:
    from launcher.config.parse import parse_config
    from launcher.core.store import open_store
    from launcher.core.types import RunId
    from launcher.record.run_store import RunStore
    from launcher.training.comm.collective import Collective
    from launcher.training.trainer import Trainer

    marks: Any = Marks()
    with tempfile.TemporaryDirectory() as folder:
        run = RunStore(open_store(folder), RunId("input"))
        trainer = marks.trainer = Trainer(parse_config(config), run, marks, device="cpu", threads=config["resources"]["threads"])
        trainer.build()
        trainer.run(Collective(generation=1, rank=0, world_size=1, device="cpu", timeout_s=600.0))
        trainer.finish()
        held_out = len(trainer._parts.test)
    began, ended = marks.evaluating[-2:]
    return {**summary(marks.steps, config["trainer"]["global_batch_size"]), "held_out_per_s": held_out / (ended - began)}


def theirs(config: dict[str, Any]) -> dict[str, float]:
    from torch.utils.data import DataLoader

    from benchmarks.peers.job import loss_of, prepare
    from benchmarks.peers.pictures import Pictures

    torch.set_num_threads(config["resources"]["threads"])
    model, train, optimizer = prepare(config)
    batch, steps = config["trainer"]["global_batch_size"], config["trainer"]["steps"]
    processes: Any = {"num_workers": config["resources"]["data_workers"], "persistent_workers": True}
    loader = DataLoader(train, batch_size=batch, shuffle=True, drop_last=True, **processes)
    marks, waited = [], 0.0
    batches = iter(loader)
    while len(marks) < steps:
        began = time.perf_counter()
        found = next(batches, None)
        if found is None:
            batches = iter(loader)
            found = next(batches)
        waited += time.perf_counter() - began
        loss = loss_of(model, found)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        marks.append((time.perf_counter(), waited))
    del batches
    test = Pictures(config["data"]["folder"]).test
    held_out = DataLoader(test, batch_size=batch, **processes)
    evaluate(model, held_out)  # its processes start
    began = time.perf_counter()
    evaluate(model, held_out)
    return {**summary(marks, batch), "held_out_per_s": len(test) / (time.perf_counter() - began)}


def evaluate(model: nn.Module, batches: Any) -> float:
    from benchmarks.peers.job import loss_of

    model.eval()
    with torch.no_grad():
        return float(sum(loss_of(model, batch) for batch in batches))


def changes(config: dict[str, Any]) -> dict[str, list[float]]:
    """Of each change, in seconds: a step before it, then how long the first batches after it were waited for.

    A step is as long as the data takes to be read at that size, which is when a change costs most.
    """
    from launcher.config.parse import parse_config
    from launcher.training.data.data_order import DataOrder
    from launcher.training.data.feed import TrainingFeed
    from launcher.training.data.reading_processes import ReadingProcesses
    from launcher.training.parts import TRAIN, build_splits
    from launcher.training.shards.batch import BatchPlan

    job = parse_config(config)
    plan = BatchPlan(global_batch_size=job.trainer.global_batch_size, micro_batch_size=job.trainer.micro_batch_size, width=1)
    samples = build_splits(job, "cpu")[TRAIN]
    processes = ReadingProcesses(job.resources.data_workers, partial(build_splits, job, "cpu"))
    found = {}
    for name, (before, after) in CHANGES.items():
        feed = TrainingFeed(samples, DataOrder(size=len(samples), seed=0), plan, end=10**6, processes=processes)
        feed.begin(plan.forwards(*before))
        for step in range(WARM_UP):
            list(feed.step(step))
        feed.begin(plan.forwards(*after))
        pause = seconds_of(feed, WARM_UP)
        after_it = [seconds_of(feed, WARM_UP + 1 + number) for number in range(2 * WARM_UP)]
        found[name] = [statistics.mean(after_it[WARM_UP:]), pause]
        feed.begin(plan.forwards(1, 0))
    processes.end()
    return found


def seconds_of(feed: Any, step: int) -> float:
    began = time.perf_counter()
    list(feed.step(step))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
