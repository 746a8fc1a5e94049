"""How workers ended that nobody ended: what the kernel, the dying process and Ray say, gathered into one sentence. Runs in the controller process.

A loss is acted upon at once; what is known of its cause comes a moment later, by ways of its own.
"""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launcher.core.types import WorkerId
from launcher.record.events import WorkerDied
from launcher.runtime.worker.exit_watcher import MARK

PATIENCE_S = 3.0
"""Lines from other nodes are on their way for a second or two."""
KEPT = 60
"""Lines of each worker: as many as Python prints of a fatal error."""
LAST_LINES = 6
CONNECTION_ENDED = "its connection ended"
"""All that is known of a death at first."""
FATAL = "Fatal Python error: "
NOISE = re.compile(r"Extension modules:|Stack \(most recent call first\)|(\[.*logging\.cc:\d+: )?(\*\*\* SIG|PC: @| *@ +0x)")
"""What Python and Ray print of a fatal error beside its name and the place in Python."""
UNTOLD = ("ray.kill", "connection error code")
"""In Ray's words for a death of which Ray knows no more than that it was one."""


@dataclass
class _Death:
    rank: int | None
    pid: int | None
    node: str | None
    since: float
    """Monotonic seconds."""
    ray_says: str = ""


@dataclass
class Deaths:
    """Times are monotonic seconds."""

    _lines: dict[WorkerId, deque[str]] = field(default_factory=dict)
    _codes: dict[WorkerId, int] = field(default_factory=dict)
    _pending: dict[WorkerId, _Death] = field(default_factory=dict)
    _told: dict[WorkerId, WorkerDied] = field(default_factory=dict)

    @property
    def pending(self) -> bool:
        """Whether more may become known of a death."""
        return bool(self._pending)

    def printed(self, worker: WorkerId, line: str) -> bool:
        """A worker printed a line; False for one that is not the job's, but says how the process ended."""
        if line.startswith(MARK):
            code = line.removeprefix(MARK).strip()
            if code.lstrip("-").isdigit():
                self._codes[worker] = int(code)
            return False
        if line.strip():
            self._lines.setdefault(worker, deque(maxlen=KEPT)).append(line)
        return True

    def lost(self, worker: WorkerId, rank: int | None, pid: int | None, node: str | None, now: float) -> None:
        """Its connection ended."""
        self._pending[worker] = _Death(rank, pid, node, now)

    def ray_said(self, worker: WorkerId, why: str) -> None:
        """What Ray says of a death; "": the process lives, so that its connection is all that ended."""
        if not why:
            self._pending.pop(worker, None)
        elif worker in self._pending and not any(words in why for words in UNTOLD):
            self._pending[worker].ray_says = why

    def look(self, now: float) -> Iterator[WorkerDied]:
        """Deaths of which all is known by now, or no more is waited for; each is told once."""
        for worker, death in list(self._pending.items()):
            code = self._codes.get(worker)
            if code is None and now - death.since < PATIENCE_S:
                continue
            del self._pending[worker]
            lines = tuple(self._lines.pop(worker, ()))
            detail = cause_of_death(code, lines, death.ray_says)
            told = WorkerDied(worker=worker, rank=death.rank, pid=death.pid, node=death.node, detail=detail, last_lines=last_lines(lines))
            self._told[worker] = told
            yield told

    def explained(self, reason: str) -> str:
        """The reason for an end, with what became known of the worker that it names."""
        headline, newline, rest = reason.partition("\n")
        for worker, died in self._told.items():
            if f"worker {worker} (" in headline and CONNECTION_ENDED in headline:
                lines = "".join(f"\n  {line}" for line in died.last_lines)
                said = f"\nits last lines:{lines}" if lines else ""
                return f"{headline.replace(CONNECTION_ENDED, died.detail)}{said}{newline}{rest}"
        return reason


def cause_of_death(code: int | None, lines: Sequence[str], ray_says: str) -> str:
    """In words. `code`: the exit code, or minus the number of the signal; None where the kernel did not tell."""
    fatal = next((line.removeprefix(FATAL) for line in reversed(lines) if line.startswith(FATAL)), "")
    if code is None and fatal:
        words = f"a fatal error: {fatal}"
    elif code is None:
        words = "it ended without a word, as by SIGKILL or os._exit()" if not ray_says else "it ended without a word"
    elif code < 0:
        words = _signal(-code)
    else:
        words = f"exit code {code}, by no exception: something called os._exit() or exit()"
    return f"{words}; Ray: {ray_says}" if ray_says else words


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return f"{name}, as the kernel sends for want of memory, or somebody by kill -9"
    return f"{name} ({signal.strsignal(number) or 'unknown'})"


def last_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """What to show of the last lines: the beginning of a fatal error and what came right before it, else the end."""
    telling = [line for line in lines if not NOISE.match(line)]
    for index in range(len(telling) - 1, -1, -1):
        if telling[index].startswith(FATAL):
            begin = max(0, index - 2)
            return tuple(telling[begin : begin + LAST_LINES])
    return tuple(telling[-LAST_LINES:])
