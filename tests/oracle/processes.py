"""Searches in processes of their own: what ends a process, such as a signal, is a failure of the case that it played."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tests.oracle.cases import Case
from tests.oracle.mutations import mutated
from tests.oracle.search import CASES, SHRINKING_S, Found, search

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch._dynamo", "tests.oracle.search", "tests.oracle.mutations"])


@dataclass(frozen=True)
class Task:
    """One search."""

    kind: str
    seed: int
    count: int = CASES
    shrinking_s: float = SHRINKING_S
    mutation: str | None = None
    """The name of a change to the engine that is searched with."""


class Searching:
    """One search under way."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.pipe, child = _processes.Pipe()
        self._process: BaseProcess = _processes.Process(target=_serve, args=(task, child), daemon=True)
        self._process.start()
        child.close()
        self._last: Case | None = None

    def received(self) -> Found | None:
        """What has come through the pipe; None where the search goes on."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            failure = f"the process ended with exit code {self._process.exitcode}"
            return Found(self.task.kind, self.task.seed, self.task.count, smallest=self._last, failure=failure)
        if isinstance(message, Case):
            self._last = message
            return None
        self._process.join()
        if isinstance(message, Exception):
            raise message
        return message

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def search_all(tasks: Iterable[Task], processes: int) -> Iterator[Found]:
    """The results of all searches, as they come, so many at a time. Raises what is wrong with a search itself."""
    waiting = iter(tasks)
    running: dict[Connection, Searching] = {}
    try:
        while True:
            while len(running) < processes and (task := next(waiting, None)) is not None:
                searching = Searching(task)
                running[searching.pipe] = searching
            if not running:
                return
            for pipe in wait(list(running)):
                found = running[pipe].received()
                if found is not None:
                    del running[pipe]
                    yield found
    finally:
        for searching in running.values():
            searching.end()


def _serve(task: Task, pipe: Connection) -> None:
    try:
        with mutated(task.mutation):
            found = search(task.kind, task.seed, count=task.count, shrinking_s=task.shrinking_s, telling=pipe.send)
    except Exception as error:  # noqa: BLE001 - raised where the search was asked for
        pipe.send(error)
    else:
        pipe.send(found)
