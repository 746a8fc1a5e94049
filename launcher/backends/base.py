"""What a place to run must offer. The verbs work on the run store; a backend only starts, ends and explains."""

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
    "ray": "launcher.backends.ray_cluster.backend:ExistingRayBackend",
}
"""Modules by name, as text: a backend's third parties are imported when it is chosen."""
LAST_WORDS = 1000
"""Characters from the end of what a job said, where it is told in a run's reason."""


class Owner(Enum):
    """Whether something still works on a run, as far as can be known from here without waiting."""

    ALIVE = "alive"
    GONE = "gone"
    """Certainly nothing: whoever sees this may close the run."""
    UNKNOWN = "unknown"
    """It was started from another machine: watch whether its status changes."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Whether a job fits now, and how."""

    fits: bool
    workers: int
    """As many as could start now, between 0 and workers.max."""
    device: str
    gpu_per_worker: int
    where: str
    """The place in words: host name and what it has."""
    reason: str = ""
    """Why it does not fit, or what is to be known."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    url: str
    token_file: str
    """Where the token that the page asks for lies on this machine; "" where there is none."""
    tunnel: Callable[[], AbstractContextManager[str]] | None = None
    """Where the page cannot be opened from here as it is: a context in which it can, at the address that it gives."""


class Result(Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """A job can run, but something about it should be known."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of the place to run found."""

    name: str
    result: Result
    found: str
    fix: str = ""
    """What to do about it, for a person."""
    exit_code: ExitCode = ExitCode.SUCCEEDED
    """Of a check that failed: whether the configuration or the infrastructure has to be mended."""

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
    def place(self, spec: JobSpec) -> Placement:
        """Whether it fits now; touches nothing."""
        ...

    def announce(self, run: RunStore) -> None:
        """This process is about to launch the run: should it die before it has, the run is known to be without an owner."""
        ...

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        """Start what keeps a controller alive for a run whose record is written. Returns at once.

        Raises InfrastructureError when it cannot be started; then nothing of it remains.
        """
        ...

    def owner(self, run: RunStore) -> Owner: ...

    def reason_pending(self, run: RunStore) -> str:
        """Why no controller is in office yet, for a person; "" when nothing is known."""
        ...

    def last_words(self, run: RunStore) -> str:
        """What those who worked on a run said last, where it could not reach the run store; "" when nothing is known."""
        ...

    def remove(self, run: RunStore) -> str:
        """End what remains of a run without a controller; says what could not be ended, or ""."""
        ...

    def dashboard(self, run: RunStore) -> Dashboard | None: ...

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        """Check, one thing after the other, that a job with this configuration can run here; leaves nothing behind.

        What a check finds is a Finding, never an error; the run store as this process sees it is not the backend's to check.
        """
        ...


def open_backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise ConfigError(f"there is no backend {name}", where="backend.name", given=name, expected=nearest(name, BACKENDS))
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
