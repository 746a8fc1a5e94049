"""What both elastic peers need: a worker's part of a batch, the marks it leaves, and the driver's watch over them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pauses import Mark, Pause, read_marks, read_steps, steps_repeated

CALM_S = 4.0
"""Seconds of undisturbed steps before each change."""
AFTER_S = 2.0
"""Seconds of steps after it, before it is evaluated."""
PATIENCE_S = 180.0


class Marks:
    """Of one worker: [time.monotonic(), step, world size, rank], one JSON array a line of FOLDER/PID.marks, one write each."""

    def __init__(self, folder: str) -> None:
        self._file = os.open(Path(folder, f"{os.getpid()}.marks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def applied(self, step: int, world_size: int, rank: int) -> None:
        os.write(self._file, f"{json.dumps([round(time.monotonic(), 6), step, world_size, rank])}\n".encode())


def rank_batch(data: Any, step: int, rank: int, world_size: int, global_batch_size: int) -> Any:
    """A rank's part of the step's batch (inputs, labels): a contiguous range, uneven where it does not divide, as ours."""
    import torch

    begin, end = (global_batch_size * part // world_size for part in (rank, rank + 1))
    indices = [(step * global_batch_size + index) % len(data) for index in range(begin, end)]
    inputs, labels = zip(*(data[index] for index in indices), strict=True)
    return torch.stack(inputs), torch.stack(labels)


@dataclass(frozen=True)
class Watch:
    """The driver's eyes: the folder in which its workers write."""

    folder: Path

    def newest(self) -> Mark | None:
        marks = read_marks(self.folder)
        return marks[-1] if marks else None

    def until(self, what: str, condition: Callable[[Sequence[Mark]], bool], patience_s: float = PATIENCE_S) -> None:
        """Wait until the marks are so. Raises TimeoutError."""
        deadline = time.monotonic() + patience_s
        while not condition(read_marks(self.folder)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {patience_s:g} s; the newest mark is {self.newest()}")
            time.sleep(0.25)

    def training_with(self, world_size: int, since: float) -> None:
        """Wait until a step with so many workers was applied after the moment, then for the steps by which it is measured."""
        self.until(
            f"a step with {world_size} workers", lambda marks: any(mark.at > since and mark.world_size == world_size for mark in marks)
        )
        time.sleep(AFTER_S)

    def tell(self, case: str, at: float, pause: Pause, end: float) -> None:
        """Print one measurement as a line of JSON."""
        row = {
            "case": case,
            "pause_s": pause.pause_s,
            "step_s": pause.step_s,
            "first_step_s": pause.resumed_at - at,
            "steps_repeated": steps_repeated(read_marks(self.folder), at - CALM_S, end),
        }
        print(json.dumps(row), flush=True)

    def steps(self) -> dict[int, list[float]]:
        return read_steps(self.folder)
