"""The job that a peer trains, built from the configuration that `launch train --cfg job --resolve` printed.

So that both sides have the same model, data and optimizer by construction. Classification, fp32.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def read(path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(path).read_text())
    return document


def build(node: dict[str, Any], *arguments: Any) -> Any:
    """What a configuration's `_target_` makes of the node's other keys."""
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)(*arguments, **{key: value for key, value in node.items() if key != "_target_"})


def prepare(config: dict[str, Any]) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    """(model, training set, optimizer), seeded."""
    torch.manual_seed(config["seed"])
    model = build(config["model"])
    return model, build(config["data"]).train, build(config["optimizer"], model.parameters())


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def first_batch(data: Any, rank: int, world_size: int, global_batch_size: int) -> tuple[Tensor, Tensor]:
    """A rank's part of the first batch."""
    samples = [data[index] for index in range(rank, global_batch_size, world_size)]
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs), torch.stack(labels)


def save(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """What `restore` reads: the state after `step` steps."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, Path(folder, "state.pt"))


def restore(checkpoint: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step that Ray Train's checkpoint holds, after its state was loaded; 0 without one."""
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "state.pt"), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
