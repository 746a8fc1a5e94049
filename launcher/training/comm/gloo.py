"""Gloo groups that can be left.

Gloo offers no way to abort: torch's `abort()` does nothing, and a rank that waits for another than the lost one stays
blocked until the timeout. What frees it at once is the end of its connections, so leaving shuts them down. They are told
apart from everybody else's sockets in this process by their ports: each rank makes its device (which owns a listener) first
and publishes the listener's address; a connection is ours if it was accepted by our listener or leads to another rank's.
The listener itself is never touched.

Where this ends: open sockets are found through /dev/fd, so on Linux and macOS (tests run on Linux); elsewhere a blocked
call ends by its timeout only. And a rank that waits, while the group is formed, for a peer that has published everything
but then never connects, has no connection to cut: it gives up at the timeout.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from launcher.training.comm.torch_store import TorchStore
from launcher.training.comm.transport import KeyValueStore, Transport

THREADS = 2
"""Threads of one group, as torch has them by default."""
CUT_AGAIN_S = 0.05
"""While a group is being formed new connections still appear: they are cut as they come."""
_DESCRIPTORS = "/dev/fd"
_one_device_at_a_time = threading.Lock()
Address = tuple[str, int]
_ProcessGroup: Any = dist.ProcessGroupGloo
"""Its options are missing in torch's stubs."""


class GlooTransport(Transport):
    """One Gloo group and the addresses by which its connections are recognised."""

    def __init__(self) -> None:
        self.group: Any = None
        self._listener: Address | None = None
        self._peers: set[Address] = set()
        self._forming = False

    def connect(self, store: KeyValueStore, rank: int, world_size: int, timeout: timedelta, left: Callable[[], bool]) -> None:
        device, self._listener = _make_device()
        rendezvous = TorchStore(store, timeout.total_seconds(), left)
        rendezvous.set(f"listener/{rank}", json.dumps(self._listener))
        for other in range(world_size):
            if other != rank:
                host, port = json.loads(rendezvous.get(f"listener/{other}"))
                self._peers.add((host, port))
        options = _ProcessGroup._Options()
        options._devices = [device]
        options._timeout = timeout
        options._threads = THREADS
        self._forming = True
        try:
            if left():
                return
            self.group = _ProcessGroup(rendezvous, rank, world_size, options)
        finally:
            self._forming = False

    def wait(self, work: dist.Work, left: Callable[[], bool]) -> None:
        work.wait()

    def cut(self) -> None:
        self._cut_once()
        if self._forming:
            threading.Thread(target=self._cut_while_forming, name="leave-collective", daemon=True).start()

    def _cut_while_forming(self) -> None:
        while self._forming:
            self._cut_once()
            time.sleep(CUT_AGAIN_S)

    def _cut_once(self) -> None:
        for connection in _open_sockets():
            with connection, suppress(OSError):  # a listener has no peer, and a connection may end by itself
                local, peer = connection.getsockname()[:2], connection.getpeername()[:2]
                if local == self._listener or peer in self._peers:
                    connection.shutdown(socket.SHUT_RDWR)


def _make_device() -> tuple[Any, Address]:
    """A Gloo device and its listener's address: no call of torch gives it, so it is found as the listener that is new."""
    with _one_device_at_a_time:
        for _ in range(10):
            before = _listeners()
            device = _ProcessGroup.create_default_device()
            new = _listeners() - before
            if len(new) == 1:
                return device, new.pop()
            if not os.path.isdir(_DESCRIPTORS):
                return device, ("", 0)
            # another thread opened a listener in the same moment: try again, to be sure which one is ours
    raise RuntimeError("the listener of the Gloo device could not be told from others")


def _listeners() -> set[Address]:
    found = set()
    for candidate in _open_sockets():
        with candidate:
            if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.add(candidate.getsockname()[:2])
    return found


def _open_sockets() -> Iterator[socket.socket]:
    """Every open TCP socket of this process, as a duplicate, so that a descriptor reused meanwhile cannot be mistaken."""
    if not os.path.isdir(_DESCRIPTORS):
        return
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):  # closed since it was listed, or no socket
            duplicate = os.dup(int(name))
            try:
                is_socket = stat.S_ISSOCK(os.fstat(duplicate).st_mode)
                found = socket.socket(fileno=duplicate) if is_socket else None
            except OSError:
                os.close(duplicate)
                raise
            if found is None:
                os.close(duplicate)
            elif found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                yield found
            else:
                found.close()
