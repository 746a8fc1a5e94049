"""Compositions become the typed configuration, and whatever goes wrong becomes a ConfigError. The front of this package.

`run_application` is a real Hydra application (every flag works; the process belongs to it); `compose` composes inside somebody
else's process and leaves Hydra's globals as it found them.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from launcher.config import diagnosis
from launcher.config.application import VERSION_BASE, hydra_settings, read_flags, run_hydra, version_base
from launcher.config.explain import explain, explained, first_line
from launcher.config.overrides import settle_length
from launcher.config.parse import dump_config, is_mapping, parse_config, values_of
from launcher.config.schema import JobConfig
from launcher.config.sources import COMPOSITION_ERRORS, HydraSources, main_folder, shipped_on_path
from launcher.core.errors import ConfigError, nearest

_lock = threading.RLock()
"""Hydra keeps its state in globals: one composition at a time."""


def compose(overrides: Sequence[str], *, folder: Path, verb_config: str = "train") -> JobConfig:
    """The configuration that `launch train` with these overrides, typed in `folder`, would use. Raises ConfigError.

    May be called from any thread and where Hydra is in use already.
    """
    with _lock, version_base():
        if not OmegaConf.has_resolver("hydra"):
            setup_globals()
        sources = HydraSources(folder=folder, main=None, added=None, name=verb_config)
        words = sources.prepare(overrides)
        with explained(sources):
            composed = sources.loader.load_configuration(verb_config, words, RunMode.RUN, from_shell=False)
            document = _plain(composed)
        return _typed(document, words, sources)


def run_application(arguments: Sequence[str], *, folder: Path, verb: str = "train", verb_config: str = "train") -> list[JobConfig]:
    """Run Hydra on a command line: the configurations it describes (several with -m), or none where a flag only printed something.

    Nothing is returned before all are valid. Raises ConfigError. Prints what Hydra prints; writes no file.
    """
    with _lock, version_base():
        flags = read_flags(arguments, folder)
        if flags is None:
            return []
        sources = HydraSources(folder=folder, main=flags.main, added=flags.added, name=flags.config_name or verb_config)
        words = sources.prepare(flags.overrides)
        if flags.hydra_help:  # composes Hydra's own configuration alone
            words = [word for word in words if word.lstrip("+~").startswith("hydra")]
        jobs: list[_Job] = []
        with explained(sources), hydra_settings(verb), shipped_on_path():
            run = hydra.main(version_base=VERSION_BASE, config_path=str(main_folder(folder)), config_name=verb_config)
            run_hydra([*flags.arguments, "--", *words], run(lambda composed: jobs.append(_job(composed))))
        return [_config(job, number, len(jobs), sources) for number, job in enumerate(jobs, 1)]


def complete(arguments: Sequence[str], word: str, *, folder: Path, verb_config: str = "train") -> list[str]:
    """What `word`, after `arguments`, may become: groups, choices, keys and values, as Hydra's own completion has them."""
    with _lock, version_base(), contextlib.redirect_stderr(io.StringIO()):
        sources = HydraSources(folder=folder, main=None, added=None, name=verb_config)
        try:
            words = sources.prepare([argument for argument in arguments if "=" in argument or argument.startswith("~")])
            found = DefaultCompletionPlugin(sources.loader)._query(config_name=verb_config, line=" ".join([*words, word]))
        except (*COMPOSITION_ERRORS, SystemExit):
            return []
    key, equals, start = word.partition("=")
    found += [f"{key}={value}" for value in values_of(key.lstrip("+")) if equals and value.startswith(start)]
    return sorted({item for item in found if word.lstrip("+~").startswith("hydra") or not item.lstrip("+~").startswith("hydra")})


def apply_overrides(config: JobConfig, overrides: Sequence[str]) -> JobConfig:
    """A configuration with some of its values changed: `trainer.epochs=20`. Only what is there can change; groups cannot.

    In a mapping in which a person writes keys of their own, such as `environment`, keys can come and go (`~environment.NAME`).

    Raises ConfigError.
    """
    document: dict[str, object] = {**dump_config(config)}
    for override in settle_length(overrides):
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            raise diagnosis.unreadable_override(override, first_line(error)) from error
        if parsed.is_sweep_override():
            raise diagnosis.several_values(override)
        _set(document, parsed, override)
    try:
        return parse_config(document)
    except ConfigError as error:
        raise diagnosis.located(error, overrides) from None


def _set(document: dict[str, object], parsed: Override, override: str) -> None:
    key, plain = parsed.key_or_group, not parsed.is_delete() and parsed.package is None
    *parents, name = key.split(".")
    node: object = document
    free = False
    for depth, part in enumerate(parents, 1):
        if free and isinstance(node, dict) and not isinstance(node.get(part), dict):
            node[part] = {}
        node = node.get(part) if isinstance(node, dict) else None
        free = free or is_mapping(".".join(parents[:depth]))
    where = f"{key} ({diagnosis.COMMAND_LINE})"
    if free and isinstance(node, dict) and plain:
        node[name] = parsed.value()
        return
    if free and isinstance(node, dict) and parsed.is_delete() and name in node:
        del node[name]
        return
    if not isinstance(node, dict) or name not in node:
        known = list(node) if isinstance(node, dict) else []
        raise ConfigError(f"there is no such key: {key}", where=where, given=override, expected=nearest(name, known))
    if not plain or (isinstance(node[name], dict) and key != "workers"):
        raise ConfigError("only values can be changed here, not groups", where=where, given=override, expected=f"{key}.KEY=value")
    node[name] = parsed.value()


@dataclass(frozen=True)
class _Job:
    """One composition of Hydra's application: its overrides, and its plain values or what kept OmegaConf from working them out."""

    overrides: list[str]
    outcome: dict[str, object] | OmegaConfBaseException


def _job(composed: DictConfig) -> _Job:
    # Unresolved: an override may itself hold an interpolation, which means something in the configuration only.
    task = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    overrides = [str(item) for item in task] if isinstance(task, list) else []
    try:
        return _Job(overrides, _plain(composed))
    except OmegaConfBaseException as error:
        return _Job(overrides, error)


def _config(job: _Job, number: int, total: int, sources: HydraSources) -> JobConfig:
    """The typed configuration of a job; an error says which job of a sweep it is about."""
    try:
        if isinstance(job.outcome, OmegaConfBaseException):
            raise explain(job.outcome, sources) from job.outcome
        return _typed(job.outcome, job.overrides, sources)
    except ConfigError as error:
        raise (diagnosis.in_job(error, number, total, job.overrides) if total > 1 else error) from error.__cause__


def _plain(composed: DictConfig) -> dict[str, object]:
    """The composition as plain containers, without Hydra's own part, interpolations worked out."""
    with open_dict(composed):
        composed.pop("hydra", None)
    document = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(document, dict), "a DictConfig becomes a dict"
    return {str(key): value for key, value in document.items()}


def _typed(document: dict[str, object], overrides: Sequence[str], sources: HydraSources) -> JobConfig:
    try:
        return parse_config(document)
    except ConfigError as error:
        raise diagnosis.located(error, overrides, sources) from None
