"""What the type of a key says: its hint, and the bound that a number keeps to. `Positive[int]` is a whole number above 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Annotated, TypeVar, get_args, get_origin, get_type_hints

from launcher.core.errors import ConfigError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Bound:
    words: str
    """What is expected of the number, for a person."""
    holds: Callable[[float], bool]


Positive = Annotated[Number, Bound("more than 0", lambda number: number > 0)]
NotNegative = Annotated[Number, Bound("0 or more", lambda number: number >= 0)]


@cache
def hints_of(kind: type) -> dict[str, object]:
    """The type of each field of a dataclass, with its bound: `Annotated[int, Bound]`."""
    return get_type_hints(kind, include_extras=True)


def bound_of(hint: object) -> Bound | None:
    """The bound of a number's type, also where the number may be None instead."""
    for option in (hint, *get_args(hint)):
        if get_origin(option) is Annotated:
            return next(item for item in get_args(option) if isinstance(item, Bound))
    return None


def check_amounts(group: object, parent: str = "") -> None:
    """Raises ConfigError for the first number, in the order of the fields, that is outside its bound. Groups in the group are checked too."""
    kind: type = type(group)
    for name, hint in hints_of(kind).items():
        key, value = f"{parent}{name}", getattr(group, name)
        bound = bound_of(hint)
        if bound is not None and isinstance(value, (int, float)) and not bound.holds(value):
            raise ConfigError("the value is too small", where=key, given=str(value), expected=bound.words)
        if is_dataclass(value):
            check_amounts(value, f"{key}.")
