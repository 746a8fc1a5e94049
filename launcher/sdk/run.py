"""One run in the hands of a notebook: the verbs of the shell, by the same names. Every call blocks and needs no event loop of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from launcher import jobs
from launcher.backends.base import Dashboard
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import LauncherError
from launcher.core.types import JsonObject
from launcher.jobs.refs import RunRef
from launcher.record.events import encode
from launcher.record.rows import encode_line, encode_row
from launcher.record.status import RunStatus
from launcher.sdk.display import run_html


def submit(*overrides: str, folder: str | Path | None = None) -> Run:
    """Start a job and return at once: `launcher.submit("model=resnet", "workers=2")`.

    The words are those of `launch train`. `folder` holds the code and its configs/, by default the current folder. What one should know of
    the environment variables of the job is a UserWarning.
    Raises ConfigError, NameTaken and the other errors of `launch train`.
    """
    from launcher.config.load import compose

    place = Path(folder).absolute() if folder is not None else Path.cwd()
    return Run(jobs.submit(compose(list(overrides), folder=place), folder=place, tell=_warn))


def attach(word: str, runs: str | None = None) -> Run:
    """The run with this name or id, or the only one that begins so. `runs`: by default LAUNCHER_RUNS, else ./runs. Raises RunNotFound."""
    return Run(jobs.find(word, runs or jobs.default_runs()))


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


class Run:
    """A run that exists. The object holds its address only: each answer is read from the run store."""

    def __init__(self, ref: RunRef, *, clock: Clock | None = None) -> None:
        self._ref = ref
        self._clock = clock or SystemClock()

    @property
    def id(self) -> str:
        return self._ref.run_id

    @property
    def name(self) -> str:
        return self._ref.name

    @property
    def uri(self) -> str:
        """Where its record is."""
        return self._ref.uri

    def status(self) -> RunStatus:
        return jobs.status(self._ref, clock=self._clock)

    def wait(
        self, timeout_s: float | None = None, *, interval_s: float = 0.5, on_status: Callable[[RunStatus], object] | None = None
    ) -> RunStatus:
        """Wait until the run has ended, well or not, and return its final status; `on_status` is called with each status on the way.

        Raises TimeoutError after `timeout_s`; the run is not touched by that, nor by an interrupt.
        """
        began = self._clock.monotonic()
        for status in jobs.watch(self._ref, interval_s=interval_s, clock=self._clock):
            if on_status is not None:
                on_status(status)
            if status.state.terminal:
                break
            if timeout_s is not None and self._clock.monotonic() - began >= timeout_s:
                raise TimeoutError(f"{self.name} is {status.state.value} at step {status.step} after {timeout_s:g} s; it keeps running")
        return status

    def logs(
        self, *, follow: bool = False, rank: int | None = None, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[JsonObject]:
        """What the workers printed: {time, worker, rank, generation, stream, line}, oldest first."""
        return map(encode_line, jobs.logs(self._ref, follow=follow, rank=rank, since=since, tail=tail, clock=self._clock))

    def events(self, *, follow: bool = False) -> Iterator[JsonObject]:
        """The timeline, oldest first: {time, term, generation, step, kind} and the facts of the kind."""
        return map(encode, jobs.events(self._ref, follow=follow, clock=self._clock))

    def metrics(self) -> list[JsonObject]:
        """Rows of training and evaluation metrics by step; `pandas.DataFrame(run.metrics())` reads them."""
        return [encode_row(row) for row in jobs.metrics(self._ref)]

    def resize(self, size: int | str, *, wait: bool = True) -> RunStatus:
        """Ask for another number of workers: `run.resize(3)` within the bounds, `run.resize("2..6")` the bounds, with 6 wanted.

        Waits until the run has that size or says why not (status.reason, status.waiting_for), at most two minutes. An
        interrupt ends the wait alone. Raises ConfigError for a size that it cannot have, RunStateError for an ended run.
        """
        request = jobs.resize(self._ref, size, clock=self._clock)
        if not wait:
            return self.status()
        *_, last = jobs.follow_resize(self._ref, request, clock=self._clock)
        return last.status

    def stop(self) -> RunStatus:
        """Ask it to save a checkpoint and end; `wait` for the end."""
        return jobs.stop(self._ref, clock=self._clock)

    def resume(self, *overrides: str) -> Run:
        """Go on at the newest whole checkpoint, perhaps longer: `run.resume("trainer.epochs=20")`. Returns itself."""
        jobs.resume(self._ref, overrides, clock=self._clock, tell=_warn)
        return self

    def dashboard(self) -> Dashboard:
        """Raises BackendUnavailable while none is up."""
        return jobs.dashboard(self._ref)

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.uri!r})"

    def _repr_html_(self) -> str:
        try:
            return run_html(self.status(), self._ref)
        except LauncherError as error:  # a representation must not raise
            return run_html(None, self._ref, trouble=str(error))
