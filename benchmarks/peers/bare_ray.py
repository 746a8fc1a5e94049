"""What a script must do at least to train on a Ray of its own: ray.init, one actor a worker, torch, a process group, a step.

Prints {"first_step_at": seconds since 1970 when the slowest worker had done its first step}.
"""

from __future__ import annotations

import argparse
import json
import time

import ray


class Worker:
    def __init__(self, config: str, rank: int, world_size: int, threads: int) -> None:
        self.config, self.rank, self.world_size, self.threads = config, rank, world_size, threads

    def address(self) -> str:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def first_step(self, address: str) -> float:
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        from benchmarks.peers import job

        torch.set_num_threads(self.threads)
        config = job.read(self.config)
        model, data, optimizer = job.prepare(config)
        dist.init_process_group("gloo", init_method=address, rank=self.rank, world_size=self.world_size)
        parallel = DistributedDataParallel(model)
        batch = job.first_batch(data, self.rank, self.world_size, config["trainer"]["global_batch_size"])
        job.loss_of(parallel, batch).backward()
        optimizer.step()
        done = time.time()
        dist.destroy_process_group()
        return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    ray.init(address="local", _temp_dir=arguments.folder, log_to_driver=False, logging_level="ERROR")
    remote = ray.remote(num_cpus=0)(Worker)
    workers = [remote.remote(arguments.config, rank, arguments.workers, arguments.threads) for rank in range(arguments.workers)]
    address = ray.get(workers[0].address.remote())
    done = ray.get([worker.first_step.remote(address) for worker in workers])
    print(json.dumps({"first_step_at": max(done)}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
