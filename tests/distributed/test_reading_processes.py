"""Processes that read samples: what they read, draw and raise is what the training thread itself would; and they end with their worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.config.schema import JobConfig
from launcher.core.process import ProcessRef
from launcher.runtime.worker.reporter import user_traceback
from launcher.training.data.batches import tensors_of
from launcher.training.data.data_order import DataOrder
from launcher.training.data.feed import TrainingFeed, evaluation_batches
from launcher.training.data.reading_processes import ReadingProcesses, ReadingProcessLost
from launcher.training.parts import TEST, TRAIN, build_splits
from launcher.training.shards.batch import BatchPlan
from launcher.training.trainer import RunOutcome
from tests.support.data_sets import HERE
from tests.unit.training.small_jobs import Recorder, alone, job, trainer

pytestmark = pytest.mark.distributed
PLAN = BatchPlan(global_batch_size=12, micro_batch_size=3, width=1)
ROOT = Path(__file__).parents[2]
HANG_S = 60.0


def job_with(kind: str, workers: int = 0, **options: Any) -> JobConfig:
    return job(
        {"_target_": "tests.unit.training.small_jobs.Plain"},
        data={"_target_": f"{HERE}.Data", "kind": kind, **options},
        resources={"data_workers": workers},
        trainer={"eval_every_steps": 3},
    )


class Opened:
    """Processes that are ended when the test is over."""

    def __init__(self) -> None:
        self.all: list[ReadingProcesses] = []

    def __call__(self, config: JobConfig, count: int = 2) -> ReadingProcesses:
        processes = ReadingProcesses(count, partial(build_splits, config, "cpu"))
        self.all.append(processes)
        return processes


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    for processes in opened.all:
        processes.end()


def batches(config: JobConfig, world_size: int, processes: ReadingProcesses | None, steps: int = 5) -> list[list[torch.Tensor]]:
    """The tensors of each shard, whichever rank has it, step after step."""
    samples = build_splits(config, "cpu")[TRAIN]
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for rank in range(world_size):
        feed = TrainingFeed(samples, DataOrder(size=len(samples), seed=config.seed), PLAN, end=steps, processes=processes)
        feed.begin(PLAN.forwards(world_size, rank))
        for step in range(steps):
            for shards, batch in zip(feed.forwards, feed.step(step), strict=True):
                found[step, shards.start] = tensors_of(batch)
    return [found[key] for key in sorted(found)]


def assert_same(first: list[list[torch.Tensor]], second: list[list[torch.Tensor]]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["RecordFile", "Table", "OneCaller", "Drawing", "DrawingTogether", "OfManyLengths"])
def test_what_is_read_and_drawn_depends_neither_on_who_reads_nor_on_the_number_of_ranks(kind: str, opened: Opened) -> None:
    config = job_with(kind)
    processes = opened(config)
    wanted = batches(config, 1, None)
    for world_size in (1, 2, 4):
        assert_same(batches(config, world_size, processes), wanted)


@pytest.mark.parametrize("kind", ["Drawing", "OfManyLengths"])
def test_the_held_out_split_is_read_ahead_as_well(kind: str, opened: Opened) -> None:
    config = job_with(kind)
    samples = build_splits(config, "cpu")[TEST]
    chunks = [range(start, min(start + 4, len(samples))) for start in range(0, len(samples), 4)]
    read = [tensors_of(batch) for batch in evaluation_batches(samples, chunks, opened(config))]
    assert_same(read, [tensors_of(batch) for batch in evaluation_batches(samples, chunks, None)])
    assert sum(len(tensors[0]) for tensors in read) == len(samples)


@pytest.mark.parametrize("kind", ["RecordFile", "Table", "OneCaller"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_bears_one_call_at_a_time_is_trained_on(kind: str, workers: int) -> None:
    made = trainer(job_with(kind, workers), recorder := Recorder())
    assert made.run(alone()) is RunOutcome.FINISHED
    assert len(recorder.records) == 6
    made.finish()


@pytest.mark.parametrize(("kind", "type_of_error"), [("Torn", ValueError), ("TornInTwoParts", RuntimeError)])
def test_an_error_of_the_data_set_comes_out_as_the_users_own(kind: str, type_of_error: type[Exception], opened: Opened) -> None:
    with pytest.raises(type_of_error, match="record 7") as caught:
        batches(job_with(kind), 1, opened(job_with(kind)))
    shown = user_traceback(caught.value, ROOT / "tests")
    assert shown.startswith('Traceback (most recent call last):\n  File "support/data_sets.py", line')
    assert "launcher/" not in shown
    assert shown.splitlines()[-1].endswith("record 7 is torn" if kind == "Torn" else "TwoPartError: record 7: torn")


def test_an_error_while_the_data_set_is_built_comes_out_as_well(opened: Opened) -> None:
    samples = build_splits(job_with("Rows"), "cpu")[TRAIN]
    processes = opened(job_with("Table", size="many"))
    with pytest.raises(TypeError, match="str"):
        processes.read(samples.where, [(np.arange(2), None)]).batches()


def test_a_process_that_is_killed_is_explained(opened: Opened) -> None:
    with pytest.raises(ReadingProcessLost, match="one of 2 processes that read the data was killed by SIGKILL"):
        batches(job_with("Deadly"), 1, opened(job_with("Deadly")))


def test_the_processes_stay_from_one_generation_to_the_next(opened: Opened) -> None:
    config = job_with("Drawing")
    processes = opened(config)
    samples = build_splits(config, "cpu")[TRAIN]
    feed = TrainingFeed(samples, DataOrder(size=len(samples), seed=0), PLAN, end=100, processes=processes)
    feed.begin(PLAN.forwards(2, 0))
    list(feed.step(0))
    before = processes.pids
    feed.begin(PLAN.forwards(2, 1))
    list(feed.step(1))
    assert processes.pids == before
    assert len(before) == 2


def test_what_is_no_longer_wanted_is_not_read_to_its_end(opened: Opened, tmp_path: Path) -> None:
    """A process is busy with a sample that takes long when its request, and one that waits behind it, are abandoned."""
    config = job_with("Waiting", folder=str(tmp_path))
    processes = opened(config, count=1)
    busy, waiting = (processes.read(TRAIN, [(np.arange(start, start + 5), None)]) for start in (0, 5))
    assert until((tmp_path / "0").exists)
    busy.abandon()
    waiting.abandon()
    last = processes.read(TRAIN, [(np.array([30]), None)])
    (tmp_path / "go").touch()
    [batch] = last.batches()
    assert batch[0][0, 0] == 30
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "30", "go"]


WORKER = """
import sys
from tests.distributed.test_reading_processes import job_with
from tests.unit.training.small_jobs import Recorder, alone, trainer

if __name__ == "__main__":
    made = trainer(job_with("Slow", 2, folder=sys.argv[1]), Recorder())
    made.run(alone())
"""


def test_the_processes_end_with_their_worker_that_is_killed(tmp_path: Path) -> None:
    """In the middle of a sample that takes for ever. Whatever ends a worker closes the pipe that they watch; a kill leaves nothing else."""
    noted = tmp_path / "noted"
    noted.mkdir()
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    worker = subprocess.Popen([sys.executable, str(program), str(noted)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert until(lambda: len(list(noted.iterdir())) == 2)
        readers = [ProcessRef.of(int(file.name)) for file in noted.iterdir()]
        server = ProcessRef.of(parent_of(readers[0].pid))
        assert all(process.alive() for process in [*readers, server])
        assert worker.pid not in [process.pid for process in readers]
        worker.send_signal(signal.SIGKILL)
        worker.wait(HANG_S)
        assert until(lambda: not any(process.alive() for process in [*readers, server]))
    finally:
        worker.kill()
        worker.wait()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(condition: Any) -> bool:
    """Whether it comes true before the limit of a hang."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
