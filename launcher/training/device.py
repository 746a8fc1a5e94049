"""Which device a worker computes on, and with how many threads."""

from __future__ import annotations

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
