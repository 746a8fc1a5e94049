"""The models of the resize benchmark, which write down when each step began: one instrument for ours and for the peers.

It goes into the working folder as timed.py, beside nothing else, and is chosen by `model._target_=timed.TimedMLP`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.mlp import MLP
from models.resnet import ResNet


class Timed(nn.Module):
    """Before the first training forward of each step it appends time.monotonic() to FOLDER/PID.steps, one number a line.

    A step is new when the last parameter (the bias of the head) has other values than at the last line: a further pass of the
    same step, and a step that is taken again because it was not applied, write nothing. So the distance between two lines is
    the time for one applied step, whatever was lost in between. A line is one write: what a killed process began is there.
    All processes of a machine share this clock.
    """

    def __init__(self, *arguments: Any, log: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._folder = log
        self._file: int | None = None
        self._seen: list[float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            values = list(self.parameters())[-1].tolist()
            if values != self._seen:
                self._seen = values
                self._write(f"{time.monotonic():.6f}\n")
        output: Tensor = super().forward(x)
        return output

    def _write(self, line: str) -> None:
        if self._file is None:
            self._file = os.open(Path(self._folder, f"{os.getpid()}.steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(self._file, line.encode())


class TimedMLP(Timed, MLP):
    pass


class TimedResNet(Timed, ResNet):
    pass


class PacedMLP(MLP):
    """Takes `pause_s` longer in each training forward and computes the same: a step of useful length on a machine without one."""

    def __init__(self, *arguments: Any, pause_s: float, log: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pause_s = pause_s

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self._pause_s:
            time.sleep(self._pause_s)
        return super().forward(x)
