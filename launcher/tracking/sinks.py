"""Where metrics go beside the run store: a Tracker. A failure of one costs the job nothing.

`WandbProcess` is the job's side of W&B, which runs in a process of its own (launcher/tracking/wandb_sink.py), because
a library that starts services, threads and connections can hang or die in ways that no try/except in the job would catch.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from msgspec import UNSET, DecodeError, UnsetType

from launcher.config.parse import dump_config
from launcher.core.clock import Clock, SystemClock
from launcher.jobspec.job import JobSpec
from launcher.record.events import Tracking
from launcher.tracking.wandb_messages import Finish, Metrics, Start, read_answer, to_line

QUEUE_ROWS = 2000
SLOW_START_S = 90.0
FINISH_TIMEOUT_S = 15.0


class Tracker(Protocol):
    """Calls return at once, raise nothing and may come from one thread only."""

    def start(self) -> None:
        """Begin, where it has not begun yet."""
        ...

    def metrics(self, step: int, values: Mapping[str, object]) -> None:
        """A row of committed steps, or an evaluation. What is not a finite number is left out."""
        ...

    def finish(self, exit_code: int) -> None:
        """Begin to pass on what is left."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing more will be reported: it has ended, or the time that it had for that is over. True where it never began."""
        ...

    def reports(self) -> list[Tracking]:
        """What happened since the last call, as events of the run."""
        ...


class NoTracker:
    def start(self) -> None: ...

    def metrics(self, step: int, values: Mapping[str, object]) -> None: ...

    def finish(self, exit_code: int) -> None: ...

    @property
    def finished(self) -> bool:
        return True

    def reports(self) -> list[Tracking]:
        return []


def open_tracker(spec: JobSpec, folder: Path) -> Tracker:
    """The tracker that the configuration names; `folder` is where it may keep files of its own."""
    tracking = spec.config.tracking
    if tracking.name == "none":
        return NoTracker()
    return WandbProcess(
        Start(
            run_id=spec.run_id,
            name=spec.name,
            project=tracking.project,
            entity=tracking.entity,
            mode=tracking.mode,
            folder=str(folder),
            config={**dump_config(spec.config)},
        )
    )


class WandbProcess:
    """Feeds the process with JSON lines. A full queue or a dead process drops rows, counts them and says so.

    Reports carry "state": started (with "mode": online or offline, "folder" and, online, "url"), slow, failed, or dropped.
    """

    def __init__(
        self,
        run: Start,
        *,
        command: Sequence[str] = (sys.executable, "-m", "launcher.tracking.wandb_sink"),
        queue_rows: int = QUEUE_ROWS,
        finish_timeout_s: float = FINISH_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """`run`: the first message to the process. `queue_rows`: how many messages may wait for it."""
        self._run = run
        self._command = command
        self._finish_timeout_s = finish_timeout_s
        self._clock: Clock = clock or SystemClock()
        self._messages: queue.Queue[Metrics | Finish] = queue.Queue(queue_rows)
        self._reports: queue.SimpleQueue[Tracking] = queue.SimpleQueue()
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._started_at: float | None = None
        self._finishing: threading.Thread | None = None
        self._folder = run.folder
        """Where it keeps what it has not passed on."""
        self._has_started = False
        self._fed = 0
        """Rows that the process was given."""
        self._dropped = 0

    def start(self) -> None:
        if self._started_at is None:
            self._started_at = self._clock.monotonic()
            threading.Thread(target=self._serve, name="tracking", daemon=True).start()

    def metrics(self, step: int, values: Mapping[str, object]) -> None:
        self.start()
        if self._ended.is_set() or not self._offer(Metrics(step=step, values=_finite(values))):
            self._dropped += 1

    def finish(self, exit_code: int) -> None:
        if self._started_at is not None and self._finishing is None:
            self._finishing = threading.Thread(target=self._finish, args=(exit_code,), name="tracking-finish", daemon=True)
            self._finishing.start()

    @property
    def finished(self) -> bool:
        return self._started_at is None or (self._finishing is not None and not self._finishing.is_alive())

    def _finish(self, exit_code: int) -> None:
        while not self._ended.is_set() and not self._offer(Finish(exit_code=exit_code)):
            self._drop_oldest()
        if not self._ended.wait(self._finish_timeout_s):
            self._ended.set()
            self._report("failed", f"W&B did not finish within {self._finish_timeout_s:g} s and was ended. {self._left_behind()}".strip())
            self._kill()
        while not self._messages.empty():
            self._drop_oldest()
        if not self._has_started:
            self._dropped += self._fed
        if self._dropped:
            self._report("dropped", f"{self._dropped} rows of metrics did not reach W&B; the run store has them all", rows=self._dropped)

    def reports(self) -> list[Tracking]:
        if self._started_at is not None and not self._answered.is_set() and not self._ended.is_set():
            waited = self._clock.monotonic() - self._started_at
            if waited > SLOW_START_S:
                self._answered.set()
                self._report("slow", f"W&B has not started after {waited:.0f} s; the job goes on without waiting for it")
        found: list[Tracking] = []
        while not self._reports.empty():
            found.append(self._reports.get())
        return found

    def _offer(self, message: Metrics | Finish) -> bool:
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            return False
        return True

    def _drop_oldest(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._dropped += isinstance(self._messages.get_nowait(), Metrics)

    def _report(self, state: str, message: str, *, rows: int | UnsetType = UNSET) -> None:
        self._reports.put(Tracking(tracker="wandb", state=state, message=message, rows=rows))

    def _left_behind(self) -> str:
        return f"`wandb sync {self._folder}` sends what it holds" if self._has_started else "It had not started"

    def _serve(self) -> None:
        """Start the process and listen to it until it ends. In a thread: on a loaded machine even the start can take long."""
        with tempfile.TemporaryFile() as errors:
            try:
                # A session of its own: Ctrl-C at the terminal is the job's to answer, and one signal ends all that it started.
                process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
                )
            except OSError as error:
                self._report("failed", f"W&B could not be started: {error.strerror}")
                self._ended.set()
                return
            self._process = process
            if self._ended.is_set():
                self._kill()
            threading.Thread(target=self._feed, args=(process.stdin,), name="tracking-feed", daemon=True).start()
            said_the_end = self._listen(process)
            code = process.wait()
            if not said_the_end and not self._ended.is_set():
                self._report("failed", f"W&B ended early ({_end(code)}); the job goes on without it. {_last_line(errors)}".strip())
            self._ended.set()

    def _feed(self, pipe: IO[str]) -> None:
        try:
            pipe.write(to_line(self._run))
            pipe.flush()
            while not self._ended.is_set():
                try:
                    message = self._messages.get(timeout=0.5)
                except queue.Empty:
                    continue
                self._fed += isinstance(message, Metrics)
                pipe.write(to_line(message))
                pipe.flush()
                if isinstance(message, Finish):
                    break
            pipe.close()
        except (OSError, ValueError):
            pass  # the process is gone: the listening thread says so

    def _listen(self, process: subprocess.Popen[str]) -> bool:
        """Pass on what the process says until its output ends; whether it said that it had come to its end."""
        assert process.stdout is not None
        ended = False
        for line in process.stdout:
            try:
                said = read_answer(line)
            except DecodeError:
                continue
            ended = ended or said.state in ("finished", "failed")
            if said.state == "started":
                self._has_started = True
                self._folder = said.folder or self._folder
            if said.state != "finished":
                self._answered.set()
                report = Tracking(tracker="wandb", state=said.state, message=said.message, mode=said.mode, folder=said.folder, url=said.url)
                self._reports.put(report)
        return ended

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _finite(values: Mapping[str, object]) -> dict[str, int | float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _end(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
