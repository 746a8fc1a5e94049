"""The same training by Ray Train's elastic mode, on a Ray of its own whose nodes are its capacity.

ScalingConfig(num_workers=(1, max)), one CPU a worker; the head has CPUs for all but one of them, a second node for the last. Restarts are not limited; a checkpoint every `--checkpoint-every` steps, by rank 0, into a local folder.
Prints one JSON object a measurement: case, pause_s, step_s, first_step_s, steps_repeated.

grow: a node joins. kill: a worker's process is killed; Ray Train starts as many again. node_killed: the second node's processes are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks.nodes import RayNode, descendants
from benchmarks.pauses import pause_of_job
from benchmarks.peers.elastic import AFTER_S, CALM_S, Watch

MONITOR_S = 1.0
"""How often Ray Train looks for capacity while it trains: its default of 60 s would only delay `first_step_s`."""
CASES = ("grow", "kill", "node_killed")


def train(arguments: dict[str, Any]) -> None:
    """One worker, until the driver ends."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    from benchmarks.peers import job
    from benchmarks.peers.elastic import Marks, rank_batch

    torch.set_num_threads(arguments["threads"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    config = job.read(arguments["config"])
    model, data, optimizer = job.prepare(config)
    parallel = prepare_model(model)
    step = job.restore(ray.train.get_checkpoint(), model, optimizer)
    marks = Marks(arguments["folder"])
    parallel.train()
    while True:
        optimizer.zero_grad()
        job.loss_of(parallel, rank_batch(data, step, rank, world_size, config["trainer"]["global_batch_size"])).backward()
        optimizer.step()
        step += 1
        marks.applied(step, world_size, rank)
        if step % arguments["checkpoint_every"] == 0:
            if rank == 0:
                with tempfile.TemporaryDirectory() as folder:
                    job.save(folder, model, optimizer, step)
                    ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))
            else:
                ray.train.report({"step": step})


def pid_of_rank(folder: Path, rank: int) -> int:
    """Which process wrote the newest mark of a rank."""
    newest = max((path for path in folder.glob("*.marks")), key=lambda path: _last(path, rank))
    return int(newest.stem)


def _last(path: Path, rank: int) -> float:
    marks = [json.loads(line) for line in path.read_text().splitlines(keepends=True)[-3:] if line.endswith("\n")]
    return max((at for at, _, _, mine in marks if mine == rank), default=0.0)


class Cluster:
    """The head of this process, and a second node that comes and goes."""

    def __init__(self, folder: Path, head_cpus: int) -> None:
        context = ray.init(
            address="local",
            num_cpus=head_cpus,
            num_gpus=0,
            include_dashboard=False,
            _temp_dir=str(folder / "ray"),
            log_to_driver=False,
            logging_level="ERROR",
        )
        self._address: str = context.address_info["gcs_address"]
        self._log = folder / "node.log"
        self.node: RayNode | None = None

    def grow(self) -> None:
        self.node = RayNode(self._address, self._log)

    def shrink(self) -> None:
        assert self.node is not None
        self.node.kill()
        self.node = None


def measure(cluster: Cluster, watch: Watch, case: str, most: int) -> None:
    time.sleep(CALM_S)
    at = time.monotonic()
    if case == "grow":
        cluster.grow()
    elif case == "kill":
        os.kill(pid_of_rank(watch.folder, 1), signal.SIGKILL)
        time.sleep(0.5)  # steps that were applied while the signal was on its way say nothing of the new group
    else:
        cluster.shrink()
    watch.training_with(most - 1 if case == "node_killed" else most, time.monotonic())
    end = time.monotonic()
    watch.tell(case, at, pause_of_job(watch.steps(), (at - CALM_S, at), (at, end - AFTER_S / 2)), end)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--max", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, required=True)
    parser.add_argument("--n", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    watch = Watch(folder)
    cluster = Cluster(folder, arguments.max - 1)
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "config": arguments.config,
            "folder": arguments.folder,
            "threads": arguments.threads,
            "checkpoint_every": arguments.checkpoint_every,
        },
        scaling_config=ScalingConfig(num_workers=(1, arguments.max), elastic_resize_monitor_interval_s=MONITOR_S),
        run_config=RunConfig(
            storage_path=str(folder / "results"),
            name="elastic",
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=3),
        ),
    )
    threading.Thread(target=trainer.fit, name="fit", daemon=True).start()
    try:
        watch.training_with(arguments.max - 1, time.monotonic())
        for case in CASES * arguments.n:
            measure(cluster, watch, case, arguments.max)
    finally:
        if cluster.node is not None:
            cluster.node.kill()
        sys.stdout.flush()
        # The training never ends by itself, and Ray crashes where it is shut down under it: what this process started is killed.
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0 if sys.exc_info()[0] is None else 1)


if __name__ == "__main__":
    main()
