"""From plain containers to the typed configuration, strictly: no unknown key, no silent conversion.

Every error is a ConfigError whose `where` is the dotted key.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, Union, get_args, get_origin

from launcher.config.keys import hints_of
from launcher.config.plain import plain
from launcher.config.schema import COMPONENTS, Component, JobConfig, KubeRayConfig
from launcher.core.errors import ConfigError, nearest
from launcher.core.types import JsonObject
from launcher.record.desired import WorkerBounds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Group = TypeVar("Group", bound=DataclassInstance)

TARGET = "_target_"
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list", dict: "a mapping"}
"""What is expected of a value, for a person."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def parse_config(document: Mapping[str, object]) -> JobConfig:
    """The typed configuration of a resolved Hydra composition, or of what `dump_config` gave. Raises ConfigError."""
    return _dataclass(JobConfig, plain(document, ""), "")


def dump_config(config: JobConfig) -> JsonObject:
    """Plain JSON that `parse_config` reads back to an equal configuration."""
    document = asdict(config)
    for key in COMPONENTS:
        component = document[key]
        if component is not None:
            document[key] = {TARGET: component["target"], **component["params"]}
    document["code"]["allow"] = list(config.code.allow)
    if isinstance(config.backend, KubeRayConfig):
        document["backend"]["tolerations"] = list(config.backend.tolerations)
    return document


def parse_workers(value: object, key: str = "workers") -> WorkerBounds:
    """2, "1..4", or {min, max, target}. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return WorkerBounds(min=value, max=value, target=value)
    if isinstance(value, str) and (match := _RANGE.fullmatch(value.strip())):
        low, high = int(match[1]), int(match[2])
        return WorkerBounds(min=low, max=high, target=high)
    if isinstance(value, Mapping):
        return _dataclass(WorkerBounds, value, key)
    raise _unfit(value, key, "a number such as 2, or bounds such as 1..4")


def values_of(key: str) -> tuple[str, ...]:
    """The values that a dotted key may have, where they can be counted; () elsewhere."""
    hints = _hints_at(key)
    if hints == [bool]:
        return ("true", "false")
    return tuple(value for hint in hints if get_origin(hint) is Literal for value in get_args(hint))


def is_mapping(key: str) -> bool:
    """Whether a person writes keys of their own under this dotted key, as under backend.node_selector."""
    return key.partition(".")[0] not in COMPONENTS and any(get_origin(hint) is dict for hint in _hints_at(key))


def _hints_at(key: str) -> list[object]:
    """The types of a dotted key: several where more than one choice of the group has it, [] where there is no such key."""
    hints: list[object] = [JobConfig]
    for part in key.split("."):
        kinds = [option for hint in hints for option in (hint, *get_args(hint)) if isinstance(option, type) and is_dataclass(option)]
        hints = [known[part] for kind in kinds if part in (known := hints_of(kind))]
    return hints


def _dataclass(kind: type[Group], value: object, key: str) -> Group:
    if not isinstance(value, Mapping):
        raise _unfit(value, key, WORDS[dict])
    known = {item.name: item for item in fields(kind)}
    for name in value:
        if name not in known:
            raise ConfigError(
                f"there is no such key: {_join(key, name)}",
                where=_join(key, name),
                given=repr(value[name]),
                expected=nearest(str(name), known),
            )
    arguments = {}
    for name, item in known.items():
        if name in value:
            arguments[name] = _convert(hints_of(kind)[name], value[name], _join(key, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"a key is missing: {_join(key, name)}", where=_join(key, name))
    return kind(**arguments)


def _convert(hint: object, value: object, key: str) -> object:
    """The value as the type of its key wants it. One branch for each kind of type that the schema has."""
    origin = get_origin(hint)
    if origin is Annotated:  # a number's bound, which JobConfig checks
        return _convert(get_args(hint)[0], value, key)
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), value, key)
    if origin is Literal:
        return _choice(get_args(hint), value, key)
    if origin is tuple:
        return _list(get_args(hint)[0], value, key)
    if origin is dict:
        return _mapping(get_args(hint)[1], value, key)
    if isinstance(hint, type) and is_dataclass(hint):
        return _group(hint, value, key)
    return value if hint is object else _scalar(hint, value, key)


def _union(options: tuple[object, ...], value: object, key: str) -> object:
    groups = [option for option in options if isinstance(option, type) and is_dataclass(option)]
    if len(groups) == len(options):
        return _dataclass(_named(groups, value, key), value, key)
    if type(None) in options and (value is None or (Component in options and value == {TARGET: None})):
        return None  # a group such as scheduler has a choice `none`, whose _target_ is null
    plain = [option for option in options if option is not type(None)]
    return _convert(groups[0] if groups and isinstance(value, Mapping) else plain[0], value, key)


def _named(options: Iterable[type[Group]], value: object, key: str) -> type[Group]:
    """The one of these dataclasses whose `name` the value has."""
    names: dict[str, type[Group]] = {get_args(hints_of(option)["name"])[0]: option for option in options}
    given = value.get("name", next(iter(names))) if isinstance(value, Mapping) else None
    if not isinstance(given, str) or given not in names:
        raise _no_choice(given, _join(key, "name"), names)
    return names[given]


def _group(kind: type[DataclassInstance], value: object, key: str) -> object:
    if kind is WorkerBounds:
        return parse_workers(value, key)
    if kind is Component:
        return _component(value, key)
    return _dataclass(kind, value, key)


def _component(value: object, key: str) -> Component:
    if not isinstance(value, Mapping):
        raise _unfit(value, key, f"a mapping with {TARGET} and its arguments")
    target = value.get(TARGET)
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        raise ConfigError(
            "it does not say what to build",
            where=f"{key}.{TARGET}",
            given=repr(target),
            expected="an import path such as models.resnet.ResNet",
        )
    return Component(target=target, params={name: item for name, item in value.items() if name != TARGET})


def _choice(choices: tuple[str, ...], value: object, key: str) -> str:
    for choice in choices:
        if value == choice:
            return choice
    if isinstance(value, bool) and {"on", "off"} <= set(choices):
        return "on" if value else "off"  # YAML 1.1 reads on and off as booleans
    raise _no_choice(value, key, choices)


def _list(item_hint: object, value: object, key: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise _unfit(value, key, WORDS[tuple])
    return tuple(_convert(item_hint, item, f"{key}.{index}") for index, item in enumerate(value))


def _mapping(item_hint: object, value: object, key: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _unfit(value, key, WORDS[dict])
    return {str(name): _convert(item_hint, item, _join(key, name)) for name, item in value.items()}


def _scalar(hint: object, value: object, key: str) -> object:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)  # name=7 is a name
    if type(value) is hint:
        return value
    if hint is str and isinstance(value, (float, bool)):  # YAML has read it already: 1.10 is 1.1 by now
        raise _unfit(value, key, f"text, in quotes: '{key}=\"{str(value).lower()}\"'")
    raise _unfit(value, key, next(words for kind, words in WORDS.items() if kind is hint))


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _unfit(value: object, key: str, expected: str) -> ConfigError:
    return ConfigError("the value does not fit", where=key, given=repr(value), expected=expected)


def _no_choice(value: object, key: str, choices: Iterable[str]) -> ConfigError:
    return ConfigError("no such choice", where=key, given=repr(value), expected=nearest(str(value), choices))
