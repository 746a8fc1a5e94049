"""Where progress is shown: one place that is redrawn on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

import click

from launcher.cli.render import measures, progress_line, state_word, steps
from launcher.core.clock import Clock
from launcher.jobs.changes import crew
from launcher.record.status import JobState, RunStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 5.0
LINE_EVERY_SHARE = 0.1
_PACE_S = 30.0


def colour_wanted(stream: TextIO) -> bool:
    """NO_COLOR forbids, FORCE_COLOR demands, else a terminal decides."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


class Pace:
    """Steps a second as this reader saw them over the last half minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def eta_s(self, status: RunStatus) -> float | None:
        """Seconds to the last step; None while nothing can be said."""
        if status.state is not JobState.RUNNING or status.total_steps is None:
            self._seen.clear()
            return None
        now = self._clock.monotonic()
        if self._seen and status.step < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, status.step))
        while now - self._seen[0][0] > _PACE_S:
            self._seen.popleft()
        (start, first) = self._seen[0]
        if now - start < 1.0 or status.step <= first:
            return None
        return (status.total_steps - status.step) * (now - start) / (status.step - first)


class Screen(Protocol):
    def line(self, text: str) -> None:
        """A line that stays."""
        ...

    def show(self, status: RunStatus) -> None:
        """Bring what is shown of the run up to date."""
        ...

    def pause(self) -> AbstractContextManager[None]:
        """A context in which the screen keeps still, to ask something."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class PlainScreen:
    """A line at a change of state or of the group, and about every 5 s or 10 % while steps are done."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._pace = Pace(clock)
        self._shown: tuple[JobState, str, str, int] | None = None
        self._at = 0.0

    def line(self, text: str) -> None:
        click.echo(text, file=self._stream, color=colour_wanted(self._stream))

    def show(self, status: RunStatus) -> None:
        eta_s = self._pace.eta_s(status)
        if status.state.terminal or not self._due(status):
            return
        self._shown, self._at = (*_circumstances(status), status.step), self._clock.monotonic()
        self.line(progress_line(status, eta_s))

    def _due(self, status: RunStatus) -> bool:
        if self._shown is None or self._shown[:-1] != _circumstances(status):
            return True
        done = status.step - self._shown[-1]
        if done == 0:
            return False
        share = done / status.total_steps if status.total_steps else 0.0
        return share >= LINE_EVERY_SHARE or self._clock.monotonic() - self._at >= LINE_EVERY_S

    @contextmanager
    def pause(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        pass


class LiveScreen:
    """A bar and two lines of figures at the bottom of the terminal; lines that stay scroll above."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._pace = Pace(clock)
        self._live = Live(console=self._console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def line(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(text))

    def show(self, status: RunStatus) -> None:
        self._live.update(self._picture(status), refresh=True)

    def _picture(self, status: RunStatus) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from launcher.cli.render import duration

        eta_s = self._pace.eta_s(status)
        top = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=status.total_steps or 1, completed=status.step, width=32, pulse=status.total_steps is None)
        left = f"{duration(eta_s)} to go" if eta_s is not None else ""
        top.add_row(Text.from_ansi(state_word(status.state)), bar, f"step {steps(status)}", left)
        words = "  ".join([*measures(status), crew(status)]) if status.world_size else status.reason or "..."
        return Group(top, Text(words, style="dim" if not status.world_size else ""))

    @contextmanager
    def pause(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def close(self) -> None:
        self._live.stop()


def _circumstances(status: RunStatus) -> tuple[JobState, str, str]:
    """A line is due when these change."""
    return status.state, status.reason, crew(status) if status.world_size else ""


def open_screen(stream: TextIO, clock: Clock) -> Screen:
    """A live screen on a terminal that can be redrawn, else plain lines."""
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return LiveScreen(stream, clock)
    return PlainScreen(stream, clock)
