"""Whether a job with this configuration could run: what its backend finds, and whether the run store can be used from here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher.backends.base import Finding, open_backend
from launcher.config.schema import JobConfig
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.store import is_local, local_path, open_store
from launcher.core.store_check import FOLDER, check_store
from launcher.jobs.refs import absolute_runs
from launcher.jobspec.environment import with_variables

_STORE = "run store from here"


def examine(config: JobConfig) -> Iterator[Finding]:
    """One check after the other, as each is done; leaves nothing behind."""
    config = replace(config, runs=absolute_runs(config.runs))
    try:
        with_variables(config, os.environ)
    except ConfigError as error:
        yield Finding.of_error("environment", error)
    yield from open_backend(config.backend.name).examine(config)
    yield _store(config.runs)


def worst(findings: Iterable[Finding]) -> ExitCode:
    """Infrastructure before configuration: a configuration is quickly mended."""
    return max((finding.exit_code for finding in findings), default=ExitCode.SUCCEEDED)


def _store(runs: str) -> Finding:
    made = _missing_folders(local_path(runs)) if is_local(runs) else []
    try:
        check_store(open_store(runs, create=True))
    except LauncherError as error:
        return Finding.of_error(_STORE, error)
    finally:
        if is_local(runs):
            for folder in (local_path(runs) / FOLDER, *made):
                with suppress(OSError):  # not empty, or never made
                    folder.rmdir()
    return Finding.ok(_STORE, runs)


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]
