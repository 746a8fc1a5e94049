"""NCCL groups that can be left, one rank a GPU.

Written by what is known of NCCL's abort, not yet tried on a machine with several GPUs:
- the watchdog of torch must not end the process when a collective fails, so error handling is set to none before the group is made;
- the communicator is non-blocking, so that a call blocked in NCCL does not hold the abort;
- waiting polls on the host: torch's own wait only makes the stream wait and would never notice that the group was left;
- NCCL 2.17.1, 2.25.1 and 2.28.3 to 2.28.8 are known to hang in abort.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from launcher.training.comm.torch_store import TorchStore
from launcher.training.comm.transport import KeyValueStore, Transport

ENVIRONMENT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "NCCL_NVLS_ENABLE": "0",
}
POLL_S = 0.0002


class NcclTransport(Transport):
    """One NCCL group on the current CUDA device."""

    def __init__(self) -> None:
        self.group: Any = None
        self._cut = threading.Lock()

    def connect(self, store: KeyValueStore, rank: int, world_size: int, timeout: timedelta, left: Callable[[], bool]) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        options.config.blocking = 0
        if left():
            return
        self.group = dist.ProcessGroupNCCL(TorchStore(store, timeout.total_seconds(), left), rank, world_size, options)
        self.wait(self.group.allreduce([torch.zeros(1, device="cuda")]), left)  # connects now, not inside the first step

    def wait(self, work: dist.Work, left: Callable[[], bool]) -> None:
        while not work.is_completed():
            if left():
                raise RuntimeError("the group was left")
            time.sleep(POLL_S)
        work.wait()

    def cut(self) -> None:
        if self.group is not None and self._cut.acquire(blocking=False):
            self.group.abort()
