"""What goes with a job beside its configuration: the user's code, and the packages that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.parse import TARGET
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.config.shipped import shipped_folder
from launcher.core.errors import ConfigError, nearest
from launcher.core.store import is_local, local_path
from launcher.jobspec.job import CodeRef
from launcher.jobspec.packages import Requirements, read_requirements

if TYPE_CHECKING:
    from launcher.jobspec.code import CodeArchive


def archive_code(config: JobConfig, folder: Path) -> CodeArchive:
    """The user's code and what comes with launcher. Raises ConfigError for code that does not hold what the configuration names."""
    from launcher.jobspec.code import archive

    exclude = [local_path(config.runs)] if is_local(config.runs) else []
    code = archive(folder, shipped_folder(), allow=config.code.allow, exclude=exclude)
    _refuse_missing_modules(config, {str(name) for name in code.files}, folder)
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


def _refuse_missing_modules(config: JobConfig, files: set[str], folder: Path) -> None:
    """Catches a mistyped module before anything starts; what lies inside the module only its import can tell."""
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files if name.endswith(".py")}
    for key, target in _targets(config):
        parts = target.split(".")
        if parts[0] == "models" and not any(".".join(parts[:count]) in modules for count in range(2, len(parts))):
            known = [module.removeprefix("models.") for module in modules if module.startswith("models.")]
            near = nearest(".".join(parts[1:-1]), known)
            raise ConfigError(
                f"there is no module {'.'.join(parts[:-1])} in the code",
                where=f"{key}.{TARGET}",
                given=target,
                expected=f"a module under models: {near}" if near else "a file under models/",
                next=f"the code is {folder} together with the models that come with launcher; is the file ignored by git?",
            )


def _targets(config: JobConfig) -> Iterator[tuple[str, str]]:
    for key in ("model", "data", "task", "optimizer", "scheduler"):
        component = getattr(config, key)
        if component is not None:
            yield key, component.target
            yield from _nested(key, component.params)


def _nested(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        if isinstance(value.get(TARGET), str):
            yield key, value[TARGET]
        for name, item in value.items():
            yield from _nested(f"{key}.{name}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nested(f"{key}.{index}", item)
