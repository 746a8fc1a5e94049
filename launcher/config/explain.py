"""From what Hydra raised to what a person is told. Hydra's kinds of errors are few, so some errors are known by their words alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import yaml  # type: ignore[import-untyped]
from hydra.errors import MissingConfigException, OverrideParseException, SearchPathException
from omegaconf.errors import KeyValidationError, MissingMandatoryValue, OmegaConfBaseException, UnsupportedValueType

from launcher.config import diagnosis
from launcher.config.overrides import read_word
from launcher.config.sources import COMPOSITION_ERRORS, HydraSources
from launcher.core.errors import ConfigError


@contextlib.contextmanager
def explained(sources: HydraSources) -> Iterator[None]:
    """What Hydra raises inside comes out as a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except COMPOSITION_ERRORS as error:
        raise explain(error, sources) from error


def explain(error: BaseException, sources: HydraSources) -> ConfigError:
    """The error for a person that an error of Hydra, OmegaConf or the YAML reader stands for."""
    found = _by_kind(error, sources) or _by_words(str(error), sources) or _by_value(error, sources) or _by_file(sources)
    if found is not None:
        return found
    file = getattr(error, "filename", None)
    return diagnosis.anything_else(first_line(error) or type(error).__name__, diagnosis.shown(file, sources.folder) if file else "")


def first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0]


def _by_kind(error: BaseException, sources: HydraSources) -> ConfigError | None:
    if isinstance(error, OverrideParseException):
        return diagnosis.unreadable_override(error.override, first_line(error), sources)
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error, sources)
    if isinstance(error, SearchPathException):
        return diagnosis.anything_else(str(error), f"--config-dir ({diagnosis.COMMAND_LINE})")
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, sources)
    return None


def _by_words(text: str, sources: HydraSources) -> ConfigError | None:
    if text.startswith("Config group override") and (wrong := _wrong_choice(sources)):
        return wrong
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return diagnosis.several_values(found[1])
    if text.startswith("force-add of config groups"):
        return diagnosis.forced_group(text.partition("'")[2].rstrip("'"))
    if text.startswith(("Only one of --run", "The --resolve flag")):
        return diagnosis.bad_flags(text)
    if found := re.match(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        return _explain_key(found[1], "defaults list" in text, sources)
    return None


def _by_value(error: BaseException, sources: HydraSources) -> ConfigError | None:
    """OmegaConf's errors, which name the key: raised by itself, or by Hydra because of one."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return None
    if isinstance(cause, (UnsupportedValueType, KeyValidationError)) and (found := _by_file(sources)):
        return found
    describe = diagnosis.missing_value if isinstance(cause, MissingMandatoryValue) else diagnosis.bad_value
    return describe(cause.full_key, first_line(cause.msg or cause), sources.overrides, sources)


def _by_file(sources: HydraSources) -> ConfigError | None:
    """A file with a value that a configuration cannot have: OmegaConf's error names neither file nor key, or the key within the file."""
    refused = sources.file_refused()
    if refused is None:
        return None
    file, error = refused
    key = error.full_key if isinstance(error, OmegaConfBaseException) else ""
    return diagnosis.unusable_value(file, key or "", first_line(error))


def _wrong_choice(sources: HydraSources) -> ConfigError | None:
    for word in map(read_word, sources.overrides):
        if word and word.key in sources.groups() and word.value not in sources.choices(word.key):
            return diagnosis.not_a_choice(word.key, word.value or "", sources)
    return None


def _explain_yaml(error: yaml.YAMLError, sources: HydraSources) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return diagnosis.bad_yaml(diagnosis.shown(mark.name, sources.folder), mark.line + 1, error.problem or "")
    return diagnosis.bad_yaml(diagnosis.shown(getattr(error, "name", ""), sources.folder), None, first_line(error))


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
