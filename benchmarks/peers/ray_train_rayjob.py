"""The job of `benchmarks.kuberay` by Ray Train, as the entrypoint of a hand-written RayJob; it runs on the Ray cluster that the job is given.

Results and checkpoints go to object storage, because its pods share no disk. At the first step with N workers, rank 0 puts the moment (seconds
since 1970) under world-N beside them. With `--most` above `--workers` it is elastic: capacity is looked for every second (Ray Train's default of
a minute would only delay the change), a checkpoint is taken every `--checkpoint-every` steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

MONITOR_S = 1.0


def train(arguments: dict[str, Any]) -> None:
    """One worker, until its cluster goes away."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    from benchmarks.peers import job
    from launcher.core.store import open_store

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    config = job.read(arguments["config"])
    model, data, optimizer = job.prepare(config)
    parallel = prepare_model(model)
    step = job.restore(ray.train.get_checkpoint(), model, optimizer)
    size = config["trainer"]["global_batch_size"]
    begin, end = (size * part // world_size for part in (rank, rank + 1))
    told = False
    parallel.train()
    while True:
        samples = [data[(step * size + index) % len(data)] for index in range(begin, end)]
        inputs, labels = zip(*samples, strict=True)
        optimizer.zero_grad()
        job.loss_of(parallel, (torch.stack(inputs), torch.stack(labels))).backward()
        optimizer.step()
        if rank == 0 and not told:
            at = time.time()
            open_store(arguments["storage"]).put(f"world-{world_size}", str(at).encode())
            told = True
        step += 1
        if step % arguments["checkpoint_every"] == 0:
            if rank == 0:
                with tempfile.TemporaryDirectory() as folder:
                    job.save(folder, model, optimizer, step)
                    ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))
            else:
                ray.train.report({"step": step})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--storage", required=True, help="s3://bucket/prefix")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--most", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.most > arguments.workers:
        scaling = ScalingConfig(num_workers=(arguments.workers, arguments.most), elastic_resize_monitor_interval_s=MONITOR_S)
    else:
        scaling = ScalingConfig(num_workers=arguments.workers)
    TorchTrainer(
        train,
        train_loop_config={"config": arguments.config, "storage": arguments.storage, "checkpoint_every": arguments.checkpoint_every},
        scaling_config=scaling,
        run_config=RunConfig(
            storage_path=arguments.storage,
            name="peer",
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=3),
        ),
    ).fit()


if __name__ == "__main__":
    main()
