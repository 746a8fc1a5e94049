"""Notices that a worker's process or machine will go away: SIGTERM, and a file that appears. Runs in the worker.

SIGTERM becomes a notice instead of the death of the process, so that there is time to leave. The main thread of a Ray
worker sits in C++ and runs Python's signal handlers only when it comes by; the interpreter's C handler, however, writes
the signal's number to a pipe at once (signal.set_wakeup_fd), and a thread of ours reads it.

A process that has had SIGTERM ends in any case: `grace_s` after its deadline, or after it was released. What was told by
file ends nothing: the machine does. SIGKILL, ray.kill and the death of the node's raylet end it at once, as ever.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launcher.core.types import Json

POLL_S = 1.0
GRACE_S = 5.0
LARGEST_NOTICE = 64 * 1024
_RELEASED = b"\0"
"""In the pipe, where else only numbers of signals are."""
_EXPECTED = '{"deadline_s": 120} or {"deadline": "2026-01-31T12:00:00Z"}'


@dataclass(frozen=True)
class TerminationNotice:
    source: str
    """`SIGTERM` or `notice file`."""
    deadline_s: float
    """From now; not negative."""
    detail: str
    """For people: what was seen, and what could not be read."""


class UnreadableNotice(ValueError):
    """The content of a notice file says no deadline that we understand."""


class Ending:
    """When the process has to end itself; times are monotonic seconds, handed in."""

    def __init__(self, *, drain_s: float, grace_s: float) -> None:
        self._drain_s, self._grace_s = drain_s, grace_s
        self._end_at: float | None = None
        self._released = False

    def terminated(self, now: float) -> bool:
        """SIGTERM came. Whether anybody has to know: a further one gives no more time and takes none; after the release none is left."""
        if self._end_at is not None:
            return False
        self._end_at = now + (0.0 if self._released else self._drain_s) + self._grace_s
        return not self._released

    def released(self, now: float) -> None:
        """The worker's part is done, nothing is left to wait for but its own end."""
        self._released = True
        if self._end_at is not None:
            self._end_at = min(self._end_at, now + self._grace_s)

    def left(self, now: float) -> float | None:
        """Seconds until it has to end; None as long as nobody wants that."""
        return None if self._end_at is None else max(0.0, self._end_at - now)


def deadline_in(content: bytes, *, now: datetime) -> float | None:
    """Seconds from `now` that a notice file grants; None where it is empty. Raises UnreadableNotice."""
    if not content.strip():
        return None
    try:
        document: Json = json.loads(content)
    except ValueError as error:
        raise UnreadableNotice(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or not ("deadline_s" in document or "deadline" in document):
        raise UnreadableNotice("it names no deadline")
    if "deadline_s" in document:
        seconds = document["deadline_s"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise UnreadableNotice(f"deadline_s is {json.dumps(seconds)}, not a number of seconds")
        return max(0.0, float(seconds))
    try:
        moment = datetime.fromisoformat(str(document["deadline"]))
        return max(0.0, (moment - now).total_seconds())
    except (ValueError, TypeError) as error:  # TypeError: a time without a zone cannot be compared
        raise UnreadableNotice(f"deadline is {json.dumps(document['deadline'])}, not an ISO time with its zone") from error


def notice_in(content: bytes, path: str, *, drain_s: float, now: datetime) -> TerminationNotice:
    """What a notice file says; what it does not say, or says badly, is replaced by the default, and the detail says so."""
    try:
        seconds = deadline_in(content, now=now)
    except UnreadableNotice as error:
        return TerminationNotice("notice file", drain_s, f"{path} appeared, but {error}; expected {_EXPECTED}, taken: {drain_s:g} s")
    if seconds is None:
        return TerminationNotice("notice file", drain_s, f"{path} appeared and names no deadline; taken: {drain_s:g} s")
    return TerminationNotice("notice file", seconds, f"{path} grants {seconds:.0f} s")


class NoticeFile:
    """One look after another at the file. A content that is new is a notice, so that a file may be made first and filled then."""

    def __init__(self, path: Path, *, drain_s: float) -> None:
        self._path, self._drain_s = path, drain_s
        self._seen: bytes | None = None

    def look(self, now: datetime) -> TerminationNotice | None:
        try:
            with self._path.open("rb") as file:
                content = file.read(LARGEST_NOTICE)
            notice = notice_in(content, str(self._path), drain_s=self._drain_s, now=now)
        except FileNotFoundError:
            self._seen = None
            return None
        except OSError as error:
            content = str(error).encode()
            notice = TerminationNotice(
                "notice file", self._drain_s, f"{self._path} cannot be read ({error.strerror}); taken: {self._drain_s:g} s"
            )
        if content == self._seen:
            return None
        self._seen = content
        return notice


class TerminationNotices:
    """`noticed` is called on threads of this object, and for a file again when its content changes."""

    def __init__(
        self,
        noticed: Callable[[TerminationNotice], None],
        *,
        drain_s: float,
        notice_file: str | None,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._noticed, self._drain_s, self._poll_s = noticed, drain_s, poll_s
        self._file = NoticeFile(Path(notice_file).absolute(), drain_s=drain_s) if notice_file else None
        self._ending = Ending(drain_s=drain_s, grace_s=grace_s)
        self._released = threading.Event()
        self._writing: int | None = None

    def install(self) -> None:
        """Take SIGTERM over, and begin to look for the file. Raises ValueError outside of the process's main thread."""
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.signal(signal.SIGTERM, _nothing)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(before=_hold_sigterm, after_in_parent=_let_sigterm_through, after_in_child=_forget_sigterm)
        threading.Thread(target=self._watch_signals, args=(reading,), name="sigterm", daemon=True).start()
        if self._file is not None:
            threading.Thread(target=self._watch_file, args=(self._file,), name="notice file", daemon=True).start()

    def released(self) -> None:
        """The worker's part is done. From now on no file is looked at, and a SIGTERM, also one that came, means the end."""
        self._released.set()
        if self._writing is not None:
            os.write(self._writing, _RELEASED)

    def _watch_signals(self, reading: int) -> None:
        while True:
            left = self._ending.left(time.monotonic())
            if left == 0.0:
                os._exit(128 + signal.SIGTERM)  # by now whatever a clean end would wait for does not come
            ready, _, _ = select.select([reading], [], [], left)
            told = os.read(reading, 512) if ready else b""
            if _RELEASED in told:
                self._ending.released(time.monotonic())
            if signal.SIGTERM in told and self._ending.terminated(time.monotonic()):
                notice = TerminationNotice("SIGTERM", self._drain_s, f"process {os.getpid()} was sent SIGTERM")
                # On a thread of its own: whatever it is held up by, this one has to see to the end.
                threading.Thread(target=self._noticed, args=(notice,), name="notice", daemon=True).start()

    def _watch_file(self, file: NoticeFile) -> None:
        while not self._released.wait(self._poll_s):
            notice = file.look(datetime.now(UTC))
            if notice is not None:
                self._noticed(notice)


def _nothing(number: int, frame: object) -> None:
    """The pipe has it already."""


# A forked child (a data worker) is ended by SIGTERM like any process and must not write to its parent's pipe, not even
# while it is being born: until it has let go of both, the signal waits.


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_sigterm_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _forget_sigterm() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_sigterm_through()
