"""Data sets that only ever bear one call at a time, that draw random numbers, or that fail: what users write, in small."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTH = 64
"""Numbers of a sample."""
RECORD = 4 * WIDTH
"""Bytes of one."""
HERE = "tests.support.data_sets"


class Rows:
    """`size` samples: numbers, all of them equal to the index, and a label below 3."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.numbers(index), index % 3

    def numbers(self, index: int) -> Tensor:
        return torch.full((WIDTH,), float(index))


class RecordFile(Rows):
    """Seeks and reads in a file that is open all the time."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the data set lives
        self.file.write(np.repeat(np.arange(size, dtype=np.float32), WIDTH).tobytes())

    def numbers(self, index: int) -> Tensor:
        self.file.seek(index * RECORD)
        record = torch.from_numpy(np.frombuffer(self.file.read(RECORD), dtype=np.float32).copy())
        if record.tolist() != [index] * WIDTH:
            raise RuntimeError(f"record {index} was asked for, {record[0]} came")
        return record


class Table(Rows):
    """One cursor of a database's connection."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.connection = sqlite3.connect(":memory:")
        self.cursor = self.connection.cursor()
        self.cursor.execute("create table numbers (place integer primary key, value real)")
        self.cursor.executemany("insert into numbers values (?, ?)", [(index, float(index)) for index in range(size)])

    def numbers(self, index: int) -> Tensor:
        self.cursor.execute("select value from numbers where place = ?", (index,))
        return torch.full((WIDTH,), self.cursor.fetchone()[0])


class OneCaller(Rows):
    """Holds a lock and a generator, neither of which can be pickled, and bears no second call while one is under way."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.lock = threading.Lock()
        self.calls: Iterator[int] = (number for number in range(10**9))

    def numbers(self, index: int) -> Tensor:
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("two calls at once")
        try:
            next(self.calls)
            return super().numbers(index)
        finally:
            self.lock.release()


class Drawing(Rows):
    """A number from each of the global generators, beside the index; draws while it is built as well."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.offset = random.random()

    def __getitem__(self, index: int) -> Any:
        drawn = [self.offset + random.random(), np.random.random(), float(torch.rand(()))]
        return torch.tensor([*drawn, *[0.0] * (WIDTH - 3)]), index % 3


class DrawingTogether(Drawing):
    """The same where many are read at once, and where they are put together."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]

    def collate_fn(self, samples: list[Any]) -> list[Tensor]:
        return [torch.stack([numbers for numbers, _ in samples]) + random.random(), torch.tensor([label for _, label in samples])]


class OfManyLengths(Rows):
    """Texts of different lengths, which collate_fn fills up to the longest of a batch."""

    def __getitem__(self, index: int) -> Any:
        return {"text": torch.full((1 + index % 7,), float(index)), "label": index % 3}

    def collate_fn(self, samples: list[Any]) -> dict[str, Tensor]:
        texts = torch.nn.utils.rnn.pad_sequence([sample["text"] for sample in samples], batch_first=True, padding_value=-1.0)
        return {"text": texts, "label": torch.tensor([sample["label"] for sample in samples])}


class TwoPartError(Exception):
    """Cannot be made anew from its message alone, so it cannot be pickled."""

    def __init__(self, record: int, why: str) -> None:
        super().__init__(f"record {record}: {why}")


class Torn(Rows):
    """Raises at one sample."""

    def numbers(self, index: int) -> Tensor:
        if index == 7:
            raise ValueError(f"record {index} is torn")
        return super().numbers(index)


class TornInTwoParts(Rows):
    def numbers(self, index: int) -> Tensor:
        if index == 7:
            raise TwoPartError(index, "torn")
        return super().numbers(index)


class Deadly(Rows):
    """Ends its process at one sample, as a fault of compiled code does."""

    def numbers(self, index: int) -> Tensor:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().numbers(index)


class Slow(Rows):
    """In a reading process every sample takes for ever; it notes the process in a folder before."""

    def __init__(self, size: int, folder: str) -> None:
        super().__init__(size)
        self.folder = Path(folder)

    def numbers(self, index: int) -> Tensor:
        if multiprocessing.parent_process() is not None:
            (self.folder / str(os.getpid())).touch()
            threading.Event().wait()
        return super().numbers(index)


class Waiting(Rows):
    """Notes in a folder which sample is asked for, and waits until there is a file `go`."""

    def __init__(self, size: int, folder: str) -> None:
        super().__init__(size)
        self.folder = Path(folder)

    def numbers(self, index: int) -> Tensor:
        (self.folder / str(index)).touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return super().numbers(index)


class Data:
    """Both splits of one kind."""

    def __init__(self, kind: str, size: int = 40, test_size: int = 13, **options: Any) -> None:
        self.train, self.test = globals()[kind](size, **options), globals()[kind](test_size, **options)
