"""The same first step by Ray Train's TorchTrainer, on a Ray of its own.

Prints {"first_step_at": seconds since 1970 when the slowest worker had done its first step}.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(arguments: dict[str, Any]) -> None:
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    from benchmarks.peers import job

    torch.set_num_threads(arguments["threads"])
    context = ray.train.get_context()
    config = job.read(arguments["config"])
    model, data, optimizer = job.prepare(config)
    parallel = prepare_model(model)
    batch = job.first_batch(data, context.get_world_rank(), context.get_world_size(), config["trainer"]["global_batch_size"])
    job.loss_of(parallel, batch).backward()
    optimizer.step()
    Path(arguments["folder"], f"done-{context.get_world_rank()}").write_text(str(time.time()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    ray.init(address="local", _temp_dir=arguments.folder, log_to_driver=False, logging_level="ERROR")
    TorchTrainer(
        train,
        train_loop_config={"config": arguments.config, "folder": arguments.folder, "threads": arguments.threads},
        scaling_config=ScalingConfig(num_workers=arguments.workers, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(Path(arguments.folder, "results")), name="first-step"),
    ).fit()
    done = [float(path.read_text()) for path in Path(arguments.folder).glob("done-*")]
    print(json.dumps({"first_step_at": max(done)}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
