"""From plain containers to the typed configuration, strictly: no unknown key, no silent conversion.

Every error is a ConfigError whose `where` is the dotted key.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from launcher.config.schema import Component, JobConfig, KubeRayConfig
from launcher.core.errors import ConfigError, nearest
from launcher.record.desired import WorkerBounds

TARGET = "_target_"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def parse_config(document: Mapping[str, Any]) -> JobConfig:
    """The typed configuration of a resolved Hydra composition, or of what `dump_config` gave."""
    parsed: JobConfig = _dataclass(JobConfig, document, "")
    return parsed


def dump_config(config: JobConfig) -> dict[str, Any]:
    """Plain JSON that `parse_config` reads back to an equal configuration."""
    document = asdict(config)
    for key in ("model", "data", "task", "optimizer", "scheduler"):
        component = document[key]
        if component is not None:
            document[key] = {TARGET: component["target"], **component["params"]}
    document["code"]["allow"] = list(config.code.allow)
    if isinstance(config.backend, KubeRayConfig):
        document["backend"]["tolerations"] = list(config.backend.tolerations)
    return document


def parse_workers(value: Any, key: str = "workers") -> WorkerBounds:
    """2, "1..4", or {min, max, target}."""
    if isinstance(value, int) and not isinstance(value, bool):
        return WorkerBounds(min=value, max=value, target=value)
    if isinstance(value, str) and (match := _RANGE.fullmatch(value.strip())):
        low, high = int(match[1]), int(match[2])
        return WorkerBounds(min=low, max=high, target=high)
    if isinstance(value, Mapping):
        bounds: WorkerBounds = _dataclass(WorkerBounds, value, key)
        return bounds
    raise ConfigError("the value does not fit", where=key, given=repr(value), expected="a number such as 2, or bounds such as 1..4")


def values_of(key: str) -> tuple[str, ...]:
    """The values that a dotted key may have, where they can be counted; () elsewhere."""
    hints: list[Any] = [JobConfig]
    for part in key.split("."):
        kinds = [option for hint in hints for option in (hint, *get_args(hint)) if isinstance(option, type) and is_dataclass(option)]
        hints = [_hints(kind).get(part) for kind in kinds]
    if hints == [bool]:
        return ("true", "false")
    return tuple(value for hint in hints if get_origin(hint) is Literal for value in get_args(hint))


def _component(value: Any, key: str) -> Component:
    if not isinstance(value, Mapping):
        raise ConfigError("the value does not fit", where=key, given=repr(value), expected=f"a mapping with {TARGET} and its arguments")
    target = value.get(TARGET)
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        raise ConfigError(
            "it does not say what to build",
            where=f"{key}.{TARGET}",
            given=repr(target),
            expected="an import path such as models.resnet.ResNet",
        )
    return Component(target=target, params={name: item for name, item in value.items() if name != TARGET})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError("the value does not fit", where=key, given=repr(value), expected="a mapping")
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
            arguments[name] = _convert(_hints(kind)[name], value[name], _join(key, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"a key is missing: {_join(key, name)}", where=_join(key, name))
    return kind(**arguments)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if all(is_dataclass(option) for option in options):
            return _dataclass(_named(options, value, key), value, key)
        if type(None) in options and (value is None or (Component in options and value == {TARGET: None})):
            return None  # a group such as scheduler has a choice `none`, whose _target_ is null
        return _convert(next(option for option in options if option is not type(None)), value, key)
    if hint is WorkerBounds:
        return parse_workers(value, key)
    if hint is Component:
        return _component(value, key)
    if is_dataclass(hint):
        return _dataclass(hint, value, key)  # type: ignore[arg-type]
    if origin is Literal:
        choices = get_args(hint)
        if value in choices:
            return value
        if isinstance(value, bool) and {"on", "off"} <= set(choices):
            return "on" if value else "off"  # YAML 1.1 reads on and off as booleans
        raise ConfigError("no such choice", where=key, given=repr(value), expected=nearest(str(value), choices))
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(get_args(hint)[0], item, f"{key}.{index}") for index, item in enumerate(value))
        raise ConfigError("the value does not fit", where=key, given=repr(value), expected="a list")
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(name): _convert(get_args(hint)[1], item, _join(key, name)) for name, item in value.items()}
        raise ConfigError("the value does not fit", where=key, given=repr(value), expected="a mapping")
    return value if hint is Any else _scalar(hint, value, key)


def _named(options: Iterable[type], value: Any, key: str) -> type:
    """The one of these dataclasses whose `name` the value has."""
    names: dict[str, type] = {get_args(_hints(option)["name"])[0]: option for option in options}
    given = value.get("name", next(iter(names))) if isinstance(value, Mapping) else None
    if given not in names:
        raise ConfigError("no such choice", where=_join(key, "name"), given=repr(given), expected=nearest(str(given), names))
    return names[given]


def _scalar(hint: type, value: Any, key: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)  # name=7 is a name
    if type(value) is hint:
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint is str and isinstance(value, float):  # YAML has read it already: 1.10 is 1.1 by now
        raise ConfigError("the value does not fit", where=key, given=repr(value), expected=f"text, in quotes: '{key}=\"{value}\"'")
    raise ConfigError("the value does not fit", where=key, given=repr(value), expected=words[hint])
