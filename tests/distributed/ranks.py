"""Real processes for the ranks of a test, and a key-value store that they share."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",  # torch imports it when a process makes its first optimizer, which takes almost two seconds
        "launcher.training.trainer",
        "launcher.training.comm.gloo",
        "tests.distributed.ranks",
        "tests.unit.training.small_jobs",
    ]
)
HANG_S = 100.0
"""The first processes of a session wait for the import of torch, which takes a minute on a busy machine."""


class SharedStore:
    """A KeyValueStore over TCP, for one generation; its server lives in the test's process."""

    def __init__(self, port: int, prefix: str = "") -> None:
        self._prefix = prefix
        self._client = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=HANG_S))

    def set(self, key: str, value: bytes) -> None:
        self._client.set(self._prefix + key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        try:
            self._client.wait([self._prefix + key], timedelta(seconds=max(timeout_s, 0.001)))
        except dist.DistStoreError as error:
            raise TimeoutError(key) from error
        return self._client.get(self._prefix + key)


@contextmanager
def store_server() -> Iterator[int]:
    """The port of a store that lives as long as the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    yield port
    del server


@dataclass(frozen=True)
class Rank:
    rank: int
    world_size: int
    port: int


def _serve(function: Callable[..., Any], me: Rank, arguments: tuple[Any, ...], answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        answers.put((me.rank, pickle.dumps((function(me, *arguments), None))))
    except BaseException as error:  # noqa: BLE001 - every end of a rank is the test's business
        answers.put((me.rank, pickle.dumps((None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))))


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, lost: Collection[int] = ()) -> list[Any]:
    """Call function(Rank, *arguments) in a process for each rank; the answers in the order of ranks. Raises when one failed.

    lost: ranks that end their own process and give no answer.
    """
    answering = [rank for rank in range(world_size) if rank not in lost]
    answers = processes.Queue()
    with store_server() as port:
        members = [
            processes.Process(target=_serve, args=(function, Rank(rank, world_size, port), arguments, answers), daemon=True)
            for rank in range(world_size)
        ]
        for member in members:
            member.start()
        try:
            found = dict(answers.get(timeout=HANG_S) for _ in answering)
        finally:
            for member in members:
                member.kill()
                member.join()
    results = [pickle.loads(found[rank]) for rank in answering]
    failures = [f"rank {rank}: {failure}" for rank, (_, failure) in zip(answering, results, strict=True) if failure]
    assert not failures, "\n".join(failures)
    return [result for result, _ in results]
