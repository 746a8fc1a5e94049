"""The one table of exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    SUCCEEDED = 0
    JOB_FAILED = 1
    USAGE = 2
    """Usage or configuration."""
    STOPPED = 3
    """Stopped by a person."""
    INFRASTRUCTURE = 4
    """No Ray, no cluster, no store, no capacity by the deadline."""
    INTERRUPTED = 130
