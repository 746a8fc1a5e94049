"""The run's figures as Ray metrics, so that they stand beside Ray's own in Prometheus and its dashboards. Runs in the controller process."""

from __future__ import annotations

from functools import cache
from typing import Any

from launcher.record.status import RunStatus

FIGURES = {
    "launcher_step": "Committed optimizer steps",
    "launcher_train_loss": "Mean training loss of the newest steps",
    "launcher_samples_per_s": "Training samples a second",
    "launcher_goodput": "Time in committed steps / time since submit",
    "launcher_world_size": "Workers in the generation",
    "launcher_steps_lost": "Committed steps that had to be done again",
}


def show(status: RunStatus) -> None:
    """Set every figure that is known; does nothing where Ray is not connected."""
    import ray

    if not ray.is_initialized():
        return
    for figure in FIGURES:
        value = getattr(status, figure.removeprefix("launcher_"))
        if value is not None:
            _gauge(figure).set(float(value), tags={"run_id": status.run_id, "run": status.name})


@cache
def _gauge(figure: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(figure, description=FIGURES[figure], tag_keys=("run_id", "run"))
