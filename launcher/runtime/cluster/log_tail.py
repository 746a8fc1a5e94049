"""What the workers of this node print, from the files that Ray keeps for each. Runs in the controller, on a thread of its own.

What a dying process said last is there too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.core.types import WorkerId

POLL_S = 0.2
RAY_MARKS = (b":job_id:", b":actor_name:", b":task_name:")
"""Lines that Ray writes into these files for itself."""


@dataclass
class _Followed:
    worker: WorkerId
    stream: str
    file: BinaryIO
    partial: bytes = b""


class LogTail:
    def __init__(self, printed: Callable[[WorkerId, str, str], None]) -> None:
        """`printed` is called with worker, stream (stdout or stderr) and line, on a thread of its own."""
        self._printed = printed
        self._lock = threading.Lock()
        self._followed: dict[Path, _Followed] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="log-tail", daemon=True)
        self._thread.start()

    def follow(self, worker: WorkerId, stream: str, path: Path, *, from_end: bool) -> None:
        """`from_end`: what is there already was told by an earlier controller."""
        with self._lock:
            if path in self._followed or not path.is_file():
                return
            file = path.open("rb")
            if from_end:
                file.seek(0, 2)
            self._followed[path] = _Followed(worker, stream, file)

    def finish(self) -> None:
        """Read what is left, then end."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while not self._ended.wait(POLL_S):
            self._read_all()
        self._read_all()

    def _read_all(self) -> None:
        with self._lock:
            followed = list(self._followed.values())
        for each in followed:
            *lines, each.partial = (each.partial + each.file.read()).split(b"\n")
            if self._ended.is_set() and each.partial:
                lines, each.partial = [*lines, each.partial], b""
            for line in lines:
                if not line.startswith(RAY_MARKS):
                    self._printed(each.worker, each.stream, line.decode(errors="replace").rstrip("\r"))
