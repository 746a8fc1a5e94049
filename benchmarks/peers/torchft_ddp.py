"""The same training with torchft: a lighthouse, one replica group a worker, its DistributedDataParallel over Gloo.

Timeouts and the lighthouse's settings are those of torchft's own example (train_ddp.py) and of its documentation. Each replica has the share
of the batch that a worker has at full size: torchft's batch follows the membership.
Prints one JSON object a measurement: case, pause_s, step_s, first_step_s, steps_repeated (steps whose gradients were thrown away).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from benchmarks.pauses import pause_of_survivors
from benchmarks.peers.elastic import AFTER_S, CALM_S, Marks, Watch, rank_batch

LIGHTHOUSE = ("--min_replicas", "1", "--quorum_tick_ms", "100", "--join_timeout_ms", "10000")
CASES = ("grow", "kill", "frozen")


def replica(arguments: argparse.Namespace) -> None:
    """One worker, for ever."""
    import torch
    from torch.distributed import TCPStore
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    from benchmarks.peers import job

    torch.set_num_threads(arguments.threads)
    config = job.read(arguments.config)
    model, data, optimizer = job.prepare(config)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        min_replica_size=1,
        load_state_dict=lambda state: (model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"]))[0],
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        replica_id=f"replica_{arguments.replica}",
        timeout=timedelta(seconds=30),
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=arguments.lighthouse,
        hostname="127.0.0.1",
    )
    parallel = DistributedDataParallel(manager, model)
    fault_tolerant = Optimizer(manager, optimizer)
    marks = Marks(arguments.folder)
    size = config["trainer"]["global_batch_size"]
    parallel.train()
    attempt = 0
    while True:
        batch = rank_batch(data, attempt, arguments.replica % arguments.max, arguments.max, size)
        attempt += 1
        fault_tolerant.zero_grad()
        job.loss_of(parallel, batch).backward()
        fault_tolerant.step()
        marks.applied(manager.current_step(), manager.num_participants(), arguments.replica)


class Group:
    """The driver's replicas, by number; numbers are not given twice."""

    def __init__(self, arguments: argparse.Namespace, lighthouse: str) -> None:
        self._arguments = arguments
        self._lighthouse = lighthouse
        self._started = 0
        self.members: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> int:
        number = self._started
        self._started += 1
        given = self._arguments
        command = [sys.executable, "-m", "benchmarks.peers.torchft_ddp", "--replica", str(number), "--lighthouse", self._lighthouse]
        command += ["--config", given.config, "--folder", given.folder, "--max", str(given.max), "--threads", str(given.threads)]
        with Path(given.folder, f"replica-{number}.log").open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
            self.members[number] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        return number

    def end(self, number: int) -> None:
        process = self.members.pop(number)
        process.kill()
        process.wait()


@contextmanager
def lighthouse(folder: str) -> Iterator[str]:
    """A lighthouse of our own; gives its address."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("torchft_lighthouse")), *LIGHTHOUSE, "--bind", f"127.0.0.1:{port}"]
    with Path(folder, "lighthouse.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def measure(group: Group, watch: Watch, case: str) -> None:
    """One change: grow from one below the most, or lose the second of the members; the group is then as it was before `grow`."""
    size = len(group.members)
    time.sleep(CALM_S)
    at = time.monotonic()
    if case == "grow":
        survivors = [process.pid for process in group.members.values()]
        group.start()
        watch.training_with(size + 1, at)
    else:
        victim = sorted(group.members)[1]
        survivors = [process.pid for number, process in group.members.items() if number != victim]
        group.members[victim].send_signal(signal.SIGKILL if case == "kill" else signal.SIGSTOP)
        watch.training_with(size - 1, at)
        group.end(victim)
    end = time.monotonic()
    watch.tell(case, at, pause_of_survivors(watch.steps(), survivors, (at - CALM_S, at), (at, end - AFTER_S / 2)), end)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--max", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--replica", type=int)
    parser.add_argument("--lighthouse")
    arguments = parser.parse_args()
    if arguments.replica is not None:
        replica(arguments)
        return
    watch = Watch(Path(arguments.folder))
    with lighthouse(arguments.folder) as address:
        group = Group(arguments, address)
        try:
            for _ in range(arguments.max - 1):
                group.start()
            watch.training_with(arguments.max - 1, time.monotonic())
            for case in [case for _ in range(arguments.n) for loss in CASES[1:] for case in ("grow", loss)]:
                measure(group, watch, case)
        finally:
            for number in list(group.members):
                group.end(number)


if __name__ == "__main__":
    main()
