"""A plain script for torchrun: DataLoader, DistributedSampler, DistributedDataParallel.

`--width` is the number of samples in one forward pass of a rank; where a rank's part of the batch is larger, gradients are
accumulated without communication until the last pass (`no_sync`). Rank 0 prints [seconds since 1970, steps done] every
`--log-every` steps, one JSON array a line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers import job


def batches(data: torch.utils.data.Dataset[tuple[Tensor, Tensor]], width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `width` without end, epoch after epoch."""
    sampler: DistributedSampler[tuple[Tensor, Tensor]] = DistributedSampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=width, sampler=sampler, drop_last=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--log-every", type=int, required=True)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    dist.init_process_group("gloo")
    config = job.read(arguments.config)
    model, data, optimizer = job.prepare(config)
    parallel = DistributedDataParallel(model)
    rank_batch_size = config["trainer"]["global_batch_size"] // dist.get_world_size()
    passes = rank_batch_size // arguments.width
    if passes * arguments.width != rank_batch_size:
        sys.exit(f"--width {arguments.width} does not divide the {rank_batch_size} samples of a rank")
    source = batches(data, arguments.width)
    parallel.train()
    for step in range(1, arguments.steps + 1):
        optimizer.zero_grad()
        for number in range(passes):
            with parallel.no_sync() if number < passes - 1 else contextlib.nullcontext():
                loss = job.loss_of(parallel, next(source)) / passes
                loss.backward()
        optimizer.step()
        if step % arguments.log_every == 0:
            loss.item()
            if dist.get_rank() == 0:
                print(json.dumps([time.time(), step]), flush=True)
    # Taken apart while the other rank is already gone, a Gloo group aborts its process now and then; all that was measured is told.
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
