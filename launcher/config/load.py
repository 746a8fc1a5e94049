"""Hydra's door: compositions become the typed configuration, and whatever goes wrong becomes a ConfigError.

`run_application` is a real Hydra application (every flag works; the process belongs to it); `compose` composes inside somebody
else's process and leaves Hydra's globals as it found them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]
from hydra import version
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf, JobConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException, SearchPathException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from launcher.config import diagnosis
from launcher.config.application import HYDRA_CHOICES, hydra_nodes
from launcher.config.overrides import read_word, settle_length
from launcher.config.parse import dump_config, parse_config, values_of
from launcher.config.schema import JobConfig
from launcher.config.sources import COMPOSITION_ERRORS, HydraSources, main_folder, shipped_on_path
from launcher.core.errors import ConfigError, nearest

VERSION_BASE = "1.3"
_lock = threading.RLock()
"""Hydra keeps its state in globals: one composition at a time."""


@dataclass(frozen=True)
class _Job:
    overrides: list[str]
    outcome: dict[str, Any] | Exception


def compose(overrides: Sequence[str], *, folder: Path, verb_config: str = "train") -> JobConfig:
    """The configuration that `launch train` with these overrides, typed in `folder`, would use. Raises ConfigError.

    May be called from any thread and where Hydra is in use already.
    """
    with _lock, _version_base():
        if not OmegaConf.has_resolver("hydra"):
            setup_globals()
        sources = HydraSources(folder=folder, main=None, added=None, name=verb_config)
        words = sources.prepare(overrides)
        with _explained(sources):
            composed = sources.loader.load_configuration(verb_config, words, RunMode.RUN, from_shell=False)
            document = _plain(composed)
        return _typed(document, words, sources)


def run_application(arguments: Sequence[str], *, folder: Path, verb: str = "train", verb_config: str = "train") -> list[JobConfig]:
    """Run Hydra on a command line: the configurations it describes (several with -m), or none where a flag only printed something.

    Nothing is returned before all are valid. Raises ConfigError. Prints what Hydra prints; writes no file.
    """
    with _lock, _version_base():
        flags = _read_flags(arguments)
        if flags is None:
            return []
        sources = HydraSources(
            folder=folder,
            main=_absolute(flags.config_path, folder),
            added=_absolute(flags.config_dir, folder),
            name=flags.config_name or verb_config,
        )
        words = sources.prepare(flags.overrides)
        if flags.hydra_help:  # composes Hydra's own configuration alone
            words = [word for word in words if word.lstrip("+~").startswith("hydra")]
        argv = _without(arguments, flags.overrides)
        if flags.config_path and "://" not in flags.config_path:
            argv += ["--config-path", str(_absolute(flags.config_path, folder))]
        jobs: list[_Job] = []
        with _explained(sources), _hydra_settings(verb), shipped_on_path():
            run = hydra.main(version_base=VERSION_BASE, config_path=str(main_folder(folder)), config_name=verb_config)
            _run([*argv, "--", *words], lambda: run(lambda composed: jobs.append(_job(composed)))())
        configs = []
        for number, job in enumerate(jobs, 1):
            try:
                configs.append(_outcome(job, sources))
            except ConfigError as error:
                raise (diagnosis.in_job(error, number, len(jobs), job.overrides) if len(jobs) > 1 else error) from error.__cause__
        return configs


def complete(arguments: Sequence[str], word: str, *, folder: Path, verb_config: str = "train") -> list[str]:
    """What `word`, after `arguments`, may become: groups, choices, keys and values, as Hydra's own completion has them."""
    with _lock, _version_base(), contextlib.redirect_stderr(io.StringIO()):
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

    Raises ConfigError.
    """
    document: dict[str, Any] = dump_config(config)
    for override in settle_length(overrides):
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            raise diagnosis.unreadable_override(override, _first_line(error)) from error
        if parsed.is_sweep_override():
            raise diagnosis.several_values(override)
        _set(document, parsed.key_or_group, parsed.value(), override, plain=not parsed.is_delete() and parsed.package is None)
    try:
        return parse_config(document)
    except ConfigError as error:
        raise diagnosis.located(error, overrides) from None


def _set(document: dict[str, Any], key: str, value: Any, override: str, *, plain: bool) -> None:
    *parents, name = key.split(".")
    node: Any = document
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    known = list(node) if isinstance(node, dict) else []
    where = f"{key} ({diagnosis.COMMAND_LINE})"
    if name not in known:
        raise ConfigError(f"there is no such key: {key}", where=where, given=override, expected=nearest(name, known))
    if not plain or (isinstance(node[name], dict) and key != "workers"):
        raise ConfigError("only values can be changed here, not groups", where=where, given=override, expected=f"{key}.KEY=value")
    node[name] = value


# Hydra's application


def _read_flags(arguments: Sequence[str]) -> Any:
    """Hydra's own reading of a command line, with flags and overrides in any order; None where it has answered already (--version)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return get_args_parser().parse_intermixed_args(list(arguments))
    except SystemExit as stop:
        if not stop.code:
            return None
        raise diagnosis.bad_flags(said.getvalue().strip().rpartition("error: ")[2]) from None


def _absolute(path: str | None, folder: Path) -> Path | None:
    return folder.absolute() / path if path and "://" not in path else None


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags of a command line; equal words are interchangeable, so the first of them may go."""
    rest = [argument for argument in arguments if argument != "--"]
    for override in overrides:
        rest.remove(override)
    return rest


def _run(argv: list[str], application: Any) -> None:
    """Run with this command line, errors raised and not printed. Hydra reads sys.argv, and HYDRA_FULL_ERROR for whether to raise."""
    said = io.StringIO()
    before, sys.argv = sys.argv, ["launch", *argv]
    hydra_before, root = HydraConfig.instance().cfg, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with contextlib.redirect_stderr(said):
            application()
    except SystemExit as stop:
        if stop.code:
            raise diagnosis.bad_flags(said.getvalue().strip()) from None
    finally:
        sys.argv = before
        HydraConfig.instance().cfg = hydra_before
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
    sys.stderr.write(said.getvalue())


@contextlib.contextmanager
def _version_base() -> Iterator[None]:
    """Hydra 1.3's behaviour, and afterwards whatever the process had chosen."""
    before = version.VersionBase.instance().version_base
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        version.VersionBase.instance().version_base = before


@contextlib.contextmanager
def _hydra_settings(verb: str) -> Iterator[None]:
    """Hydra's own configuration as `application` has it: a help page of ours, nothing written."""
    store = ConfigStore.instance()
    original = store.repo["hydra"]["config.yaml"]
    store.store(group="hydra", name="config", node=HydraConf(defaults=_hydra_choices(), output_subdir=None, job=JobConf(name=verb)))
    with tempfile.TemporaryDirectory(prefix="launcher-") as scratch:
        for (group, name, package), node in hydra_nodes(verb, scratch).items():
            store.store(group=group, name=name, package=package, node=node, provider="launcher")
        try:
            yield
        finally:
            store.repo["hydra"]["config.yaml"] = original


def _hydra_choices() -> list[dict[str, Any]]:
    return [{group: HYDRA_CHOICES.get(group, choice)} for item in HydraConf().defaults for group, choice in item.items()]


def _job(composed: DictConfig) -> _Job:
    # Unresolved: an override may itself hold an interpolation, which means something in the configuration only.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    try:
        return _Job(overrides, _plain(composed))
    except OmegaConfBaseException as error:
        return _Job(overrides, error)


def _outcome(job: _Job, sources: HydraSources) -> JobConfig:
    if isinstance(job.outcome, Exception):
        raise _explain(job.outcome, sources) from job.outcome
    return _typed(job.outcome, job.overrides, sources)


# the typed configuration


def _plain(composed: DictConfig) -> dict[str, Any]:
    with open_dict(composed):
        composed.pop("hydra", None)
    document: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return document  # type: ignore[no-any-return]


def _typed(document: dict[str, Any], overrides: Sequence[str], sources: HydraSources) -> JobConfig:
    try:
        return parse_config(document)
    except ConfigError as error:
        raise diagnosis.located(error, overrides, sources) from None


# errors


@contextlib.contextmanager
def _explained(sources: HydraSources) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except COMPOSITION_ERRORS as error:
        raise _explain(error, sources) from error


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0]


def _explain(error: BaseException, sources: HydraSources) -> ConfigError:
    """What a person is told for what Hydra raised. Its kinds are few, so some are known by their words."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return diagnosis.unreadable_override(error.override, _first_line(text), sources)
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error, sources)
    if isinstance(error, SearchPathException):
        return diagnosis.anything_else(text, f"--config-dir ({diagnosis.COMMAND_LINE})")
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, sources)
    if text.startswith("Config group override"):
        for word in map(read_word, sources.overrides):
            if word and word.key in sources.groups() and word.value not in sources.choices(word.key):
                return diagnosis.not_a_choice(word.key, word.value or "", sources)
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return diagnosis.several_values(found[1])
    if text.startswith("force-add of config groups"):
        return diagnosis.forced_group(text.partition("'")[2].rstrip("'"))
    if text.startswith(("Only one of --run", "The --resolve flag")):
        return diagnosis.bad_flags(text)
    if found := re.match(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        return _explain_key(found[1], "defaults list" in text, sources)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, MissingMandatoryValue) and cause.full_key:
        return diagnosis.missing_value(cause.full_key, _first_line(cause.msg or cause), sources.overrides, sources)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return diagnosis.bad_value(cause.full_key, _first_line(cause.msg or cause), sources.overrides, sources)
    file = getattr(error, "filename", None)
    return diagnosis.anything_else(_first_line(text) or type(error).__name__, diagnosis.shown(file, sources.folder) if file else "")


def _explain_yaml(error: yaml.YAMLError, sources: HydraSources) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return diagnosis.bad_yaml(diagnosis.shown(mark.name, sources.folder), mark.line + 1, error.problem or "")
    return diagnosis.bad_yaml(diagnosis.shown(getattr(error, "name", ""), sources.folder), None, _first_line(error))


def _explain_missing(error: MissingConfigException, sources: HydraSources) -> ConfigError:
    named = str(error.missing_cfg_file or "")
    if not named:
        return diagnosis.anything_else(" ".join(str(error).split()), f"--config-path ({diagnosis.COMMAND_LINE})")
    group, _, choice = named.rpartition("/")
    by_hand = any(
        (word := read_word(override)) and word.key == group and choice in (word.value or "").split(",") for override in sources.overrides
    )
    named_in = diagnosis.COMMAND_LINE if by_hand else sources.file_naming(group, choice)
    if not group:
        return diagnosis.unknown_config(named, named_in or diagnosis.COMMAND_LINE, sources)
    return diagnosis.unknown_choice(group, choice, named_in, sources)


def _explain_key(key: str, listed: bool, sources: HydraSources) -> ConfigError:
    override = next((override for override in sources.overrides if override.partition("=")[0].lstrip("~") == key), key)
    if listed:
        return diagnosis.unused_group(key, override)
    return diagnosis.unknown_key(key, override, sources)
