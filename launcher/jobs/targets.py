"""Whether what the configuration names can be in the code: a mistyped module is refused before anything starts. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launcher.config.parse import TARGET
from launcher.config.schema import COMPONENTS, JobConfig
from launcher.core.errors import ConfigError, nearest

SHIPPED = "models"
"""The package that is in every job's code."""


def refuse_missing_modules(config: JobConfig, files: Mapping[str, Callable[[], bytes]], folder: Path) -> None:
    """Raises ConfigError for a target whose module neither the code has nor, for a job on this machine, an installed package.

    `files`: of the code, by path, each with what reads it; `folder`: where the code is from. What only running a module tells is left to
    the worker.
    """
    modules = {_module(path): path for path in files if path.endswith(".py")}
    own = {path.partition("/")[0].removesuffix(".py") for path in modules.values()} | {SHIPPED}
    for key, target in _targets(config):
        parts = target.split(".")
        where = f"{key}.{TARGET}"
        if parts[0] in own:
            _refuse_missing_in_code(parts, modules, files, where, folder)
        elif config.backend.name == "local" and importlib.util.find_spec(parts[0]) is None:
            raise ConfigError(
                f"there is no module {parts[0]}",
                where=where,
                given=target,
                expected=nearest(parts[0], own),
                next=f"the code is {folder}, without what git ignores; a package has to be installed beside launcher",
            )


def _refuse_missing_in_code(
    parts: list[str], modules: Mapping[str, str], files: Mapping[str, Callable[[], bytes]], where: str, folder: Path
) -> None:
    depth = max((count for count in range(1, len(parts)) if ".".join(parts[:count]) in modules), default=0)
    name = ".".join(parts[:depth])
    if depth and (depth == len(parts) - 1 or _may_have(files[modules[name]](), parts[depth])):
        return
    near = nearest(".".join(parts[1:-1]), [known.partition(".")[2] for known in modules if known.startswith(f"{parts[0]}.")])
    raise ConfigError(
        f"there is no module {'.'.join(parts[:-1])} in the code",
        where=where,
        given=".".join(parts),
        expected=f"a module under {parts[0]}: {near}" if near else f"{parts[0]}.py, or a file under {parts[0]}/",
        next=f"the code is {folder} together with the models that come with launcher; is the file ignored by git?",
    )


def _may_have(source: bytes, name: str) -> bool:
    """Whether a module may have a name of its own: False only where nothing in it could make one."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return True  # its import tells
    for node in nodes:
        match node:
            case ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found) | ast.ClassDef(name=found) | ast.Name(id=found):
                if found in (name, "__getattr__", "globals", "exec", "setattr"):
                    return True
            case ast.alias(name=found, asname=other):
                if found == "*" or (other or found).partition(".")[0] == name:
                    return True
    return False


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _targets(config: JobConfig) -> Iterator[tuple[str, str]]:
    for key in COMPONENTS:
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
