"""The processes of a worker that read samples: started once, kept from one generation to the next, ended with the worker.

They are a pool of the standard library and not those of torch's DataLoader, because what was asked for has to be taken back when the group
of workers changes, and what is more urgent put in its place. Their start is a fork server's: a worker has threads and CUDA, of which
a plain fork would make a broken copy, and starting Python and torch anew for each of them takes seconds.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch
import torch.multiprocessing  # from here on tensors are sent through shared memory

from launcher.training.data.batches import Batch
from launcher.training.data.reading_process import SLOTS, BuildSplits, Failure, Group, Message, build, prepare, read

PRELOADED = ["__main__", "launcher.training.parts"]
"""What the fork server imports once for all: the job's parts, and the program that each process of multiprocessing imports again."""


class ReadingProcessLost(Exception):
    """A process that reads samples ended by itself: killed, out of memory, or by a fault of compiled code in the data set."""


def start_fork_server() -> None:
    """Let the fork server import what it needs, meanwhile; where there is one already, it stays as it is."""
    from multiprocessing.forkserver import ensure_running, set_forkserver_preload

    set_forkserver_preload(PRELOADED)
    ensure_running()


class Reading:
    """Samples that were asked for."""

    def __init__(self, number: int, future: Future[Message | Failure | None], processes: ReadingProcesses) -> None:
        self._number = number
        self._future = future
        self._processes = processes

    @property
    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> bool:
        """Whether they are not going to be read: false where a process has been told to, or has read them."""
        return self._future.cancel()

    def abandon(self) -> None:
        """They are no longer wanted: a process that is reading them stops before the next sample."""
        if not self._future.cancel() and not self._future.done():
            self._processes.abandoned[self._number % SLOTS] = self._number

    def batches(self) -> list[Batch]:
        """One for each group, once they are read. Raises what reading raised; ReadingProcessLost."""
        try:
            answer = self._future.result()
        except BrokenProcessPool:
            raise ReadingProcessLost(self._processes.how_one_ended()) from None
        if isinstance(answer, Failure):
            answer.reraise()
        assert isinstance(answer, Message), "nobody waits for what was abandoned"
        return answer.batches()


class ReadingProcesses:
    """`count` processes; who is free takes what was asked for first."""

    def __init__(self, count: int, build_splits: BuildSplits) -> None:
        start_fork_server()
        self.count = count
        self._context = _Recording()
        self.abandoned = torch.zeros(SLOTS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call] # untyped in torch
        """As `prepare` takes it."""
        self._requests = 0
        self._pool = ProcessPoolExecutor(count, mp_context=self._context, initializer=prepare, initargs=(build_splits, self.abandoned))
        threading.Thread(target=self._start, name="start-reading-processes", daemon=True).start()

    def _start(self) -> None:
        """One process starts with each call, and most of them build their data set before they are needed. The fork server may take seconds."""
        for _ in range(self.count):
            with suppress(RuntimeError):  # they are ended already
                self._pool.submit(build)

    def read(self, split: str, groups: Sequence[Group]) -> Reading:
        """Ask for a batch of each group of samples of a split. Raises ReadingProcessLost."""
        self._requests += 1
        try:
            return Reading(self._requests, self._pool.submit(read, self._requests, split, groups), self)
        except BrokenProcessPool:
            raise ReadingProcessLost(self.how_one_ended()) from None

    def end(self) -> None:
        """Let the processes end once they have done what they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def pids(self) -> list[int]:
        """Of all that were started."""
        return [process.pid for process in self._context.started if process.pid is not None]

    def how_one_ended(self) -> str:
        """In words, of the first that ended by itself; the pool has ended the others by SIGTERM."""
        self._pool.shutdown(wait=True)
        codes = [process.exitcode for process in self._context.started]
        code = next((code for code in codes if code not in (None, -signal.SIGTERM)), None)
        ended = "ended" if code is None else f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        hint = " (the machine may be out of memory)" if code == -signal.SIGKILL else ""
        return f"one of {self.count} processes that read the data {ended}{hint}; resources.data_workers sets how many there are"


class _Recording(ForkServerContext):
    """Knows the processes that were started from it, because the pool says of one that ended only that it did."""

    def __init__(self) -> None:
        self.started: list[ForkServerProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> ForkServerProcess:  # type: ignore[override] # a class there
        process = ForkServerProcess(*arguments, **options)
        self.started.append(process)
        return process


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
