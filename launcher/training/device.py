"""Which device a worker computes on, and with how many threads."""

from __future__ import annotations

import os

import torch

from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable


def choose_device(config: JobConfig, gpus: int) -> str:
    """ "cuda" or "cpu", for a worker for which `gpus` GPUs were asked.

    What was not asked for is not used, though this process may see it: it belongs to another worker or another job.
    Raises BackendUnavailable where GPUs were asked for and CUDA is not there.
    """
    device = config.device_of_worker(gpus)
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "this worker has no CUDA",
            where="resources.device" if config.resources.device == "cuda" else "gpu",
            given=f"resources.device={config.resources.device}, {gpus} GPUs of a worker; torch {torch.__version__}",
            expected="a GPU that torch can use",
            next="look at the driver, or set gpu=0 or resources.device=cpu",
        )
    return device


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many CPU threads; None: as torch has it."""
    if threads is not None:
        torch.set_num_threads(threads)


def use_deterministic_algorithms() -> None:
    """Let this process compute the same bits from the same input each time; before anything is computed.

    An operator for which torch has no such algorithm raises from then on. Memory that nobody wrote is not filled: reading it is an
    error of its own, and filling every new tensor takes as long as writing it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # missing in torch's stubs
    torch.backends.cudnn.benchmark = False
