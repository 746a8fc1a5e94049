"""Which device a worker computes on, and with how many threads."""

from __future__ import annotations

import os

import torch

from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable


def choose_device(config: JobConfig) -> str:
    """ "cuda" or "cpu", as this process has it. Raises BackendUnavailable where a GPU was asked for and CUDA is not there."""
    wanted = config.resources.device
    available = wanted != "cpu" and torch.cuda.is_available()
    needs_cuda = wanted == "cuda" or (wanted == "auto" and (config.gpu or 0) > 0)
    if needs_cuda and not available:
        raise BackendUnavailable(
            "this worker has no CUDA",
            where="resources.device" if wanted == "cuda" else "gpu",
            given=f"resources.device={wanted}, gpu={config.gpu}; torch {torch.__version__}",
            expected="a GPU that torch can use",
            next="look at the driver, or set gpu=0 or resources.device=cpu",
        )
    return "cuda" if available and config.gpu != 0 else "cpu"


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
