"""What a backend is: a place where runs are started. docs/backends.md shows how one is written.

The verbs (submit, status, stop, ...) work on the run store; a backend starts a run's supervisor, ends it, and tells what it knows of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from launcher.config.schema import JobConfig
from launcher.core.errors import ConfigError, LauncherError, nearest
from launcher.core.exit_codes import ExitCode
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore

BACKENDS = {
    "local": "launcher.backends.local.backend:LocalBackend",
    "kuberay": "launcher.backends.kuberay.backend:KubeRayBackend",
    "ray": "launcher.backends.ray_cluster.backend:RayClusterBackend",
}
"""The value of backend.name -> module:class, as text, so that what a backend imports is loaded only when it is chosen."""
LAST_WORDS = 1000
"""Characters from the end of a job's output that are shown in a run's reason."""


class Owner(Enum):
    """Whether a process still works on a run, as far as this machine can tell without waiting."""

    ALIVE = "alive"
    GONE = "gone"
    """Certainly no process: whoever sees this may close the run."""
    UNKNOWN = "unknown"
    """This machine cannot tell: readers watch whether the run's status changes."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Whether a job fits now, and how."""

    fits: bool
    workers: int
    """As many as could start now, between 0 and workers.max."""
    device: str
    """Of a worker: cuda or cpu."""
    gpu_per_worker: int
    where: str
    """The place in words: host name and what it has."""
    reason: str = ""
    """Why it does not fit; "" where it does."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    url: str
    token_file: str
    """The file on this machine with the token that the page asks for; "" where there is none."""
    tunnel: Callable[[], AbstractContextManager[str]] | None = None
    """Where this machine cannot open `url`: a context that makes the page reachable at the address that it gives."""


class Result(Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """A job can run, but something about it should be known."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    result: Result
    found: str
    fix: str = ""
    """What to do about it, for a person."""
    exit_code: ExitCode = ExitCode.SUCCEEDED
    """Of a check that failed: USAGE where the configuration has to be corrected, INFRASTRUCTURE where the place has."""

    @classmethod
    def ok(cls, name: str, found: str) -> Finding:
        return cls(name=name, result=Result.OK, found=found)

    @classmethod
    def warning(cls, name: str, found: str, fix: str = "") -> Finding:
        return cls(name=name, result=Result.WARNING, found=found, fix=fix)

    @classmethod
    def failed(cls, name: str, found: str, fix: str, exit_code: ExitCode = ExitCode.INFRASTRUCTURE) -> Finding:
        return cls(name=name, result=Result.FAILED, found=found, fix=fix, exit_code=exit_code)

    @classmethod
    def of_error(cls, name: str, error: LauncherError) -> Finding:
        found = "; ".join(part for part in (error.what, error.given) if part)
        return cls.failed(name, found, error.next or error.expected, error.exit_code)


class Backend(Protocol):
    """One instance serves one command; which cluster is meant follows from the spec or from the run's record."""

    def place(self, spec: JobSpec) -> Placement:
        """Whether a job fits now; changes nothing. A lack of room is a Placement that does not fit, not an error.

        Raises ConfigError for settings that this backend cannot use, InfrastructureError where the place does not answer.
        """
        ...

    def announce(self, run: RunStore) -> None:
        """Called before the run's name exists: this process is about to launch it.

        A backend that can see this process notes it, so that `owner` says GONE if the process dies before the launch is done.
        """
        ...

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        """Start the supervisor of a run whose record is written: of a new run, or of one that ended and is resumed. Returns at once.

        Raises InfrastructureError when it cannot be started; then nothing of it remains.
        """
        ...

    def owner(self, run: RunStore) -> Owner:
        """Whether a process works on the run. Called several times a second, so it has to be quick; UNKNOWN where the place does not answer."""
        ...

    def reason_pending(self, run: RunStore) -> str:
        """Why no controller leads the run yet, for a person; "" when nothing is known. A place that does not answer is a reason too."""
        ...

    def last_words(self, run: RunStore) -> str:
        """The end of what the supervisor and the controller printed, at most LAST_WORDS characters; "" when nothing is known.

        It explains a death that left nothing in the run store.
        """
        ...

    def remove(self, run: RunStore) -> str:
        """End every process of a run whose controller is gone; says what could not be ended, or "".

        A place that does not answer is such a case, not an error. May be called again, and for a run of which nothing is left.
        """
        ...

    def dashboard(self, run: RunStore) -> Dashboard | None:
        """Ray's dashboard for this run; None while none is up. Raises BackendUnavailable where the place does not answer."""
        ...

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        """Check, one thing after the other, that a job with this configuration can run here; leaves nothing behind.

        What a check finds is a Finding, never an error. Whether this machine can use the run store is checked by the caller.
        """
        ...


def open_backend(name: str) -> Backend:
    """The backend of this name. Raises ConfigError for a name that is not in BACKENDS."""
    if name not in BACKENDS:
        raise ConfigError(f"there is no backend {name}", where="backend.name", given=name, expected=nearest(name, BACKENDS))
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
