"""The raw time to copy a number of bytes between two processes over Gloo: `measure`.

One block of memory, touched before, in pieces of 8 MiB, as many under way at once as two; it checks nothing and keeps nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from typing import Any

PIECE_BYTES = 8 << 20
UNDER_WAY = 2
WARM_UP = 2
HANG_S = 120.0


def measure(size: int, count: int, threads: int = 1) -> list[float]:
    """Seconds of `count` copies of `size` bytes, from the moment at which both are ready to the receiver's last byte."""
    import torch.distributed as dist

    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, server.port, size, count, threads, answers), daemon=True) for rank in (0, 1)]
    try:
        for process in ranks:
            process.start()
        found: list[float] = answers.get(timeout=HANG_S)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return found


def _rank(rank: int, port: int, size: int, count: int, threads: int, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=HANG_S))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=HANG_S))
    block = torch.ones(size, dtype=torch.uint8)
    pieces = block.split(PIECE_BYTES)
    seconds = []
    for _ in range(WARM_UP + count):
        dist.barrier()
        began = time.perf_counter()
        works: list[Any] = []
        for piece in pieces:
            if len(works) == UNDER_WAY:
                works.pop(0).wait()
            works.append(dist.isend(piece, 1) if rank == 0 else dist.irecv(piece, 0))
        for work in works:
            work.wait()
        seconds.append(time.perf_counter() - began)
    dist.barrier()
    if rank == 1:
        answers.put(seconds[WARM_UP:])
