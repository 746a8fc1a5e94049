"""What a person is told when a configuration cannot be composed: facts in, ConfigError out.

The facts come from `Sources`, which sources.py answers from Hydra; nothing here knows Hydra.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from launcher.config.overrides import Word, read_word
from launcher.config.schema import COMPONENTS
from launcher.core.errors import ConfigError, LauncherError, nearest

COMMAND_LINE = "command line"
FULL_ERROR = "HYDRA_FULL_ERROR=1 shows where it comes from"


class Sources(Protocol):
    """What can be known about a composition, also about one that fails. No method raises: what cannot be known is left out of the answer."""

    def folders(self) -> list[str]:
        """The folders that are searched, in this order; a file in an earlier one hides those of the same name."""
        ...

    def groups(self) -> list[str]: ...

    def choices(self, group: str) -> list[str]: ...

    def keys(self, parent: str) -> list[str]:
        """Names directly under a dotted key; "" for the top."""
        ...

    def file_of(self, key: str) -> str:
        """The file that sets a key, or else that sets what is nearest above it; "" where there is none."""
        ...


def shown(path: str | Path, folder: Path) -> str:
    """A path as a person would type it from `folder`."""
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def override_of(key: str, overrides: Iterable[str]) -> str | None:
    """The last override that sets the key, what is above it or what is below it."""
    found = None
    for override in overrides:
        word = read_word(override)
        if word is not None and (word.key == key or key.startswith(f"{word.key}.") or word.key.startswith(f"{key}.")):
            found = override
    return found


def located(error: LauncherError, overrides: Sequence[str], sources: Sources | None = None) -> ConfigError:
    """The same error, where each key is followed by the place that sets it: the command line or a file."""
    places = [at(key, overrides, sources) for key in error.where.split(", ") if key]
    return ConfigError(error.what, where=", ".join(places), given=error.given, expected=error.expected, next=error.next)


def at(key: str, overrides: Sequence[str], sources: Sources | None = None) -> str:
    """A key and the place where its value comes from."""
    groups = sources.groups() if sources else []
    typed = [override for override in overrides if (word := read_word(override)) is None or word.key not in groups or "{" in override]
    place = COMMAND_LINE if override_of(key, typed) else sources.file_of(key) if sources else ""
    return f"{key} ({place})" if place else key


def in_job(error: ConfigError, number: int, total: int, overrides: Sequence[str]) -> ConfigError:
    """The same error, with the job of a sweep that it is about."""
    what = f"job {number} of {total} ({' '.join(overrides)}): {error.what}"
    return ConfigError(what, where=error.where, given=error.given, expected=error.expected, next=error.next)


def unknown_choice(group: str, choice: str, named_in: str, sources: Sources) -> ConfigError:
    choices = sources.choices(group)
    return ConfigError(
        f"there is no {group} called {choice}",
        where=f"{group} ({named_in})" if named_in else group,
        given=choice,
        expected=nearest(choice, choices) or "a file of that name",
        next=f"looked for {group}/{choice}.yaml in {', '.join(sources.folders())}",
    )


def unknown_config(name: str, named_in: str, sources: Sources) -> ConfigError:
    return ConfigError(
        f"there is no configuration called {name}",
        where=named_in,
        given=name,
        expected=nearest(name, sources.choices("")),
        next=f"looked for {name}.yaml in {', '.join(sources.folders())}",
    )


def unknown_key(key: str, override: str, sources: Sources) -> ConfigError:
    """A key or group that the command line names and nothing has."""
    word = read_word(override) or Word("", key, None, None)
    parent, _, name = key.rpartition(".")
    while parent and not sources.keys(parent):
        key, (parent, _, name) = parent, parent.rpartition(".")
    known = sources.keys(parent) if parent else [*sources.keys(""), *sources.groups()]
    if name in known:
        return ConfigError(
            f"{key} is a value, with nothing under it", where=f"{key} ({COMMAND_LINE})", given=override, expected=f"{key}=value"
        )
    advice = f"{file} has the keys of {parent}" if parent and (file := sources.file_of(parent)) else ""
    if parent.partition(".")[0] in COMPONENTS and word.sign == "":
        advice += f"{'; ' if advice else ''}+{override} adds an argument"
    return ConfigError(
        f"there is no such key: {key}",
        where=f"{key} ({COMMAND_LINE})",
        given=word.value or "",
        expected=nearest(name, known),
        next=advice,
    )


def unused_group(group: str, override: str) -> ConfigError:
    return ConfigError(
        f"the group {group} is not part of this configuration",
        where=f"{group} ({COMMAND_LINE})",
        given=override,
        next=f"+{override} adds it",
    )


def not_a_choice(group: str, value: str, sources: Sources) -> ConfigError:
    return ConfigError(
        f"{group} is a group, and takes the name of one of its choices",
        where=f"{group} ({COMMAND_LINE})",
        given=value,
        expected=nearest(value, sources.choices(group)),
        next=f"a single key is set as {group}.KEY=value",
    )


def unreadable_override(override: str, problem: str, sources: Sources | None = None) -> ConfigError:
    groups = [group for group in sources.groups() if override in sources.choices(group)] if sources else []
    known = " or ".join(f"{group}={override}" for group in groups)
    return ConfigError(
        f"the override cannot be read: {problem}",
        where=COMMAND_LINE,
        given=override,
        expected="key=value or group=choice",
        next=f"did you mean {known}?" if known else "quote a value that has spaces or any of ,=:{}[]() in it: 'key=\"a, b\"'",
    )


def several_values(override: str) -> ConfigError:
    word = read_word(override) or Word("", override, None, None)
    return ConfigError(
        "several values for one key",
        where=f"{word.key} ({COMMAND_LINE})",
        given=word.value or override,
        expected="one value",
        next=f"-m runs one job for each; a list is {word.key}=[{word.value}], a text with a comma '{word.key}=\"{word.value}\"'",
    )


def bad_yaml(file: str, line: int | None, problem: str) -> ConfigError:
    return ConfigError(f"the file is not valid YAML: {problem}", where=file if line is None else f"{file}, line {line}")


def unusable_value(file: str, key: str, problem: str) -> ConfigError:
    """What YAML can write, such as a date, a set or a list that holds itself, and a configuration cannot hold."""
    return ConfigError(
        f"the file holds a value that a configuration cannot have: {problem}",
        where=f"{key} ({file})" if key else file,
        expected="text, a number, true, false, null, a list or a mapping",
        next="write it as text, in quotes",
    )


def bad_value(key: str, problem: str, overrides: Sequence[str], sources: Sources) -> ConfigError:
    """A value that cannot be worked out, or does not go where it should: interpolations."""
    return ConfigError(f"the value cannot be worked out: {problem}", where=at(key, overrides, sources))


def missing_value(key: str, problem: str, overrides: Sequence[str], sources: Sources) -> ConfigError:
    return ConfigError(
        f"the value has to be given: {problem}",
        where=at(key, overrides, sources),
        given="nothing",
        expected=f"{key}=VALUE",
        next="docs/configuration.md says what each key means",
    )


def forced_group(override: str) -> ConfigError:
    return ConfigError("a group cannot be forced in", where=COMMAND_LINE, given=override, expected=override.lstrip("+"))


def bad_flags(problem: str) -> ConfigError:
    return ConfigError(problem, where=COMMAND_LINE, next="`launch train --hydra-help` lists the flags")


def anything_else(problem: str, where: str = "") -> ConfigError:
    return ConfigError(problem or "the configuration cannot be composed", where=where, next=FULL_ERROR)
