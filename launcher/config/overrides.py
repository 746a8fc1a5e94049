"""The words of a command line, before Hydra reads them: which `+` is superfluous, and what one override implies for another.

Pure text in, text out. Values are never looked into beyond their first character; Hydra's own grammar does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=@\s]+)(?P<package>@[^=\s]*)?(?:=(?P<value>.*))?", re.DOTALL)
LENGTHS = ("trainer.steps", "trainer.epochs")
"""Two ways to say one thing: whichever the command line names replaces what a file says of the other."""


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
    """Whether `normalise` needs to know what is there already."""
    word = read_word(override)
    return word is not None and word.sign == "+" and word.package is None


def normalise(overrides: Sequence[str], *, groups: Collection[str], has_key: Callable[[str], bool]) -> list[str]:
    """The same overrides, where `+model=resnet` says what `model=resnet` says.

    `groups`: those in the defaults list already. `has_key`: whether a dotted key is in the composition already.
    Hydra refuses to add what is there. What is really new keeps its `+`; `++`, `~` and `group@package` stay as they are,
    and so do mappings and lists, which Hydra merges under either spelling.
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


def settle_length(overrides: Sequence[str]) -> list[str]:
    """Let `trainer.steps=100` stand alone where a file gives epochs, and the other way round.

    Adds the other one as null, unless the command line speaks of it too.
    """
    named = {word.key: word for override in overrides if (word := read_word(override)) and word.key in LENGTHS}
    if len(named) != 1:
        return list(overrides)
    (key, word), *_ = named.items()
    if word.sign == "~" or word.value in (None, "null"):
        return list(overrides)
    return [*overrides, f"++{LENGTHS[1 - LENGTHS.index(key)]}=null"]
