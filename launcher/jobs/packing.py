"""What goes with a job beside its configuration: the user's code, and the packages that it needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.config.shipped import shipped_folder
from launcher.core.store import is_local, local_path
from launcher.jobs.targets import refuse_missing_modules
from launcher.jobspec.job import CodeRef
from launcher.jobspec.packages import Requirements, read_requirements

if TYPE_CHECKING:
    from launcher.jobspec.code import CodeArchive


def archive_code(config: JobConfig, folder: Path) -> CodeArchive:
    """The user's code and what comes with launcher. Raises ConfigError for code that does not hold what the configuration names."""
    from launcher.jobspec.code import archive

    exclude = [local_path(config.runs)] if is_local(config.runs) else []
    code = archive(folder, shipped_folder(), allow=config.code.allow, exclude=exclude)
    refuse_missing_modules(config, {path: partial(code.read, path) for path in code.files}, folder)
    return code


def read_packages(config: JobConfig, folder: Path) -> Requirements | None:
    """The packages that the job needs beside those of its image; None where it names none. Raises ConfigError."""
    named = config.backend.requirements if isinstance(config.backend, KubeRayConfig) else None
    return read_requirements(named, folder) if named is not None else None


def code_ref(code: CodeArchive, packages: Requirements | None) -> CodeRef:
    """What the spec says of code and packages."""
    return CodeRef(
        digest=code.digest,
        git_commit=code.git_commit,
        git_dirty=code.git_dirty,
        packages=packages.digest if packages is not None else None,
    )
