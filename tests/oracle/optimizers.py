"""Optimizers and schedulers of torch as a job chooses them, and the settings that cases try."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "foreach": True},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "fused": True},
    ],
    "AdamW": [{"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "foreach": True, "amsgrad": True}, {"lr": 0.01, "fused": True}],
    "Adam": [{"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1, "foreach": True}],
    "Adagrad": [{"lr": 0.05}],
    "Adadelta": [{"lr": 0.5, "weight_decay": 0.1}],
    "Adamax": [{"lr": 0.01, "weight_decay": 0.1}],
    "NAdam": [{"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{"lr": 0.01, "weight_decay": 0.1}],
    "RMSprop": [{"lr": 0.01, "momentum": 0.9, "centered": True}, {"lr": 0.01, "weight_decay": 0.1}],
    "Rprop": [{"lr": 0.01}],
    "ASGD": [{"lr": 0.1, "weight_decay": 0.1, "t0": 2.0}],
    "Adafactor": [{"lr": 0.01, "weight_decay": 0.1}],
}
"""By their names in torch.optim: all that need no closure and take any parameters."""
TAKES_SPARSE = {"SGD": 1, "Adagrad": 1}
"""Those that take a sparse gradient, and how many of their settings do."""
SCHEDULERS = ("StepLR", "CosineAnnealingLR", "ExponentialLR", "OneCycleLR", "warm-up")
GROUPS = ("one", "matrices first", "matrices last", "reversed")


def optimizer(parameters: Iterable[nn.Parameter], name: str, groups: str = "one", **settings: Any) -> torch.optim.Optimizer:
    """`groups`: one of GROUPS; where there are two, the matrices' weights decay more and the others learn more slowly."""
    parameters = list(parameters)
    if groups == "one":
        return getattr(torch.optim, name)(parameters, **settings)
    matrices = {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": 0.2}
    others = {"params": [each for each in parameters if each.dim() < 2], "lr": settings["lr"] / 2}
    if groups == "reversed":
        matrices["params"].reverse()
        others["params"].reverse()
    chosen = [matrices, others] if groups == "matrices first" else [others, matrices]
    return getattr(torch.optim, name)([group for group in chosen if group["params"]], **settings)


def scheduler(optimizer: torch.optim.Optimizer, name: str, total_steps: int) -> Any:
    """One of SCHEDULERS over `total_steps` steps."""
    schedules = torch.optim.lr_scheduler
    if name == "StepLR":
        return schedules.StepLR(optimizer, 2, 0.5)
    if name == "CosineAnnealingLR":
        return schedules.CosineAnnealingLR(optimizer, total_steps)
    if name == "ExponentialLR":
        return schedules.ExponentialLR(optimizer, 0.8)
    if name == "OneCycleLR":
        return schedules.OneCycleLR(optimizer, max_lr=0.1, total_steps=total_steps + 1, cycle_momentum=False)
    rising, falling = schedules.LinearLR(optimizer, 0.3, 1.0, 2), schedules.CosineAnnealingLR(optimizer, total_steps)
    return schedules.SequentialLR(optimizer, [rising, falling], [2])
