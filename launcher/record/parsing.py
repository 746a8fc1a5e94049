"""From JSON as the store has it to frozen types. What does not fit is damage of the store, named with its place."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from launcher.core.errors import StoreDamaged

T = TypeVar("T")
_TYPES = re.compile(r"Expected `(.+)`, got `(.+)`")


def parsed(document: object, kind: type[T], *, where: str) -> T:
    """`document` as a `kind`; keys that `kind` does not have are passed over.

    Raises StoreDamaged that names the key (`$` is the document), what is there and what is expected.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at ")
        types = _TYPES.fullmatch(what)
        raise StoreDamaged(
            "an object in the run store is not what was written there",
            where=f"{where}, {key.strip('`')}" if key else where,
            given=types[2] if types else what,
            expected=types[1] if types else "",
            next="restore the file from a copy; where there is none, start the run anew",
        ) from None
