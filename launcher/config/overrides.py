"""The words of a command line, before Hydra reads them: which `+` is superfluous, and what one override implies for another.

Pure: text in, text out. Of a value only the first character is looked at; Hydra's own grammar reads the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=@\s]+)(?P<package>@[^=\s]*)?(?:=(?P<value>.*))?", re.DOTALL)
LENGTHS = ("trainer.steps", "trainer.epochs")
"""The two keys that give the length of the training: where the command line sets one, the other is set to null."""


@dataclass(frozen=True)
class Word:
    """One override, cut at its outermost parts."""

    sign: str
    """"", "+", "++" or "~"."""
    key: str
    package: str | None
    value: str | None


def read_word(override: str) -> Word | None:
    """The parts of an override, or None where it has not the shape of one."""
    match = _OVERRIDE.fullmatch(override)
    return match and Word(match["sign"] or "", match["key"], match["package"], match["value"])


def has_superfluous_sign(override: str) -> bool:
    """Whether the + of an override may be superfluous, so that `normalise` has to know which groups and keys there are."""
    word = read_word(override)
    return word is not None and word.sign == "+" and word.package is None


def normalise(overrides: Sequence[str], *, groups: Collection[str], has_key: Callable[[str], bool]) -> list[str]:
    """The same overrides, with `model=resnet` for `+model=resnet` where the group or key is there already, because Hydra refuses to add it.

    `groups`: those in the defaults list. `has_key`: whether a dotted key is in the composition. A group or key that is not there keeps
    its `+`; `++`, `~` and `group@package` stay as they are, and so do mappings and lists, which Hydra merges under either spelling.
    """
    return [_plain(override, groups, has_key) for override in overrides]


def _plain(override: str, groups: Collection[str], has_key: Callable[[str], bool]) -> str:
    word = read_word(override)
    if word is None or word.sign != "+" or word.package is not None or word.value is None:
        return override
    opening = word.value.lstrip()[:1]
    if word.key in groups:
        return override if opening == "{" else override[1:]
    return override[1:] if opening not in ("{", "[") and has_key(word.key) else override


def open_mappings(overrides: Sequence[str], is_mapping: Callable[[str], bool]) -> list[str]:
    """The overrides, with `++` before those that name a mapping in which a person writes keys of their own, or a key in one.

    `is_mapping`: whether a dotted key is such a mapping. Without the sign Hydra takes keys alone that a file has.
    """
    return [f"++{override}" if (word := read_word(override)) and _opens(word, is_mapping) else override for override in overrides]


def _opens(word: Word, is_mapping: Callable[[str], bool]) -> bool:
    parts = word.key.split(".")
    above = any(is_mapping(".".join(parts[:count])) for count in range(1, len(parts)))
    opening = (word.value or "").lstrip()[:1]
    return not word.sign and word.package is None and word.value is not None and (above or (opening == "{" and is_mapping(word.key)))


def settle_length(overrides: Sequence[str]) -> list[str]:
    """The overrides, with trainer.epochs set to null where they set trainer.steps alone, and the other way round: a file may give the other."""
    named = {word.key: word for override in overrides if (word := read_word(override)) and word.key in LENGTHS}
    if len(named) != 1:
        return list(overrides)
    (key, word), *_ = named.items()
    if word.sign == "~" or word.value in (None, "null"):
        return list(overrides)
    return [*overrides, f"++{LENGTHS[1 - LENGTHS.index(key)]}=null"]
