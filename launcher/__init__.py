"""Distributed training with elastic GPU jobs.

    import launcher
    run = launcher.submit("model=resnet", "workers=2")
    run.wait()

The names load what they need when they are first used, so that the import itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.schema import JobConfig
    from launcher.core.errors import LauncherError
    from launcher.record.status import RunStatus
    from launcher.sdk import Run, attach, submit

__version__ = "0.1.0"

__all__ = ["JobConfig", "LauncherError", "Run", "RunStatus", "__version__", "attach", "submit"]

_HOMES = {
    "JobConfig": "launcher.config.schema",
    "LauncherError": "launcher.core.errors",
    "Run": "launcher.sdk",
    "RunStatus": "launcher.record.status",
    "attach": "launcher.sdk",
    "submit": "launcher.sdk",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'launcher' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
