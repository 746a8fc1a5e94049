"""What the workers print: from the files of this node, and over Ray's log channel from others. Runs in the controller process."""

from __future__ import annotations

import socket
from pathlib import Path

from launcher.core.types import WorkerId
from launcher.runtime.cluster.log_channel import LogChannel
from launcher.runtime.cluster.log_tail import LogTail
from launcher.runtime.protocol.messages import WorkerDescription


class WorkerOutput:
    def __init__(self, tail: LogTail, channel: LogChannel | None) -> None:
        """`channel`: where Ray has several machines."""
        self._tail, self._channel = tail, channel

    def follow(self, worker: WorkerId, described: WorkerDescription, *, from_end: bool) -> None:
        """`from_end`: what is there already was told by an earlier controller."""
        here = described.node == socket.gethostname()
        if not here and self._channel is not None:
            self._channel.follow(worker, described.node_ip, described.pid)
        if here:
            for stream, path in (("stdout", described.stdout), ("stderr", described.stderr)):
                if path:
                    self._tail.follow(worker, stream, Path(path), from_end=from_end)

    def finish(self) -> None:
        """Read what is left, then end."""
        self._tail.finish()
        if self._channel is not None:
            self._channel.finish()
