"""From JSON as the store has it to frozen types. What does not fit is damage of the store, named with its place."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from launcher.core.errors import StoreDamaged

T = TypeVar("T")


def parsed(document: object, kind: type[T], *, where: str) -> T:
    """`document` as a `kind`; keys that `kind` does not have are passed over.

    Raises StoreDamaged that names the key, what is there and what is expected.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise damaged(str(error), where=where) from None


def damaged(why: str, *, where: str) -> StoreDamaged:
    """`why`: what does not fit, such as "Expected `int`, got `str` - at `$.step`", where `$` is the document."""
    what, _, key = why.partition(" - at ")
    return StoreDamaged(
        "an object in the run store is not what was written there",
        where=f"{where}, {key.strip('`')}" if key else where,
        expected=what,
        next="restore the file from a copy; where there is none, start the run anew",
    )
