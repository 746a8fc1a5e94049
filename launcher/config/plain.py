"""What a value of a configuration can be: what JSON has, so that every reader of a plan, a job or a record reads the same. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.core.errors import ConfigError
from launcher.core.types import Json

SHOWN = 200
"""Characters of a value that an error shows."""
WHOLE_NUMBERS = range(-(2**63), 2**63)
"""Readers of JSON keep so many, in 64 bits."""


def plain(value: object, key: str) -> Json:
    """The value as JSON reads it back; a tuple becomes a list. `key`: its dotted place, "" for the whole configuration.

    Raises ConfigError that names the key below it for what JSON has not: a number that is not finite or does not fit into 64 bits, text
    that is no Unicode, a key that is no text, and any other kind of value, such as a date, bytes or a set.
    """
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, key)
        case int():
            if value not in WHOLE_NUMBERS:
                raise _refused("the whole number is too large", key, f"a number of {len(str(abs(value)))} digits", "a number of 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise _refused("the number is not finite", key, str(value), "a finite number")
            return value
        case Mapping():
            return {_name(name, key): plain(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
        case list() | tuple():
            return [plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    given = f"{type(value).__name__} {value!r}"[:SHOWN]
    raise _refused("a configuration has no such value", key, given, "text, a number, true, false, null, a list or a mapping")


def _name(name: object, key: str) -> str:
    if not isinstance(name, str):
        raise _refused("the name of a key is no text", key, f"{type(name).__name__} {name!r}"[:SHOWN], f'text, in quotes: "{name}"')
    return _text(name, key)


def _text(text: str, key: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused("the text is no Unicode", key, ascii(text)[:SHOWN], "text in UTF-8") from None
    return text


def _refused(what: str, key: str, given: str, expected: str) -> ConfigError:
    return ConfigError(what, where=key, given=given, expected=expected)
