"""Building what YAML chose: a callable by its import path, with errors that name the key."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from launcher.config.parse import TARGET
from launcher.config.schema import Component
from launcher.core.errors import ConfigError, nearest


def build(component: Component, *args: object, key: str, offered: Mapping[str, object] = MappingProxyType({})) -> Any:
    """Call the component with its parameters; `args` come first.

    `offered`, by name: what is given to it, and to each component among its parameters, where it has a parameter of that name.
    A mapping with `_target_` anywhere among the parameters is built before. `key` is the component's place in the configuration.
    The result is whatever the callable gives. Raises ConfigError where the path leads nowhere or the parameters do not fit; what the
    callable raises comes out unchanged.
    """
    function = import_target(component.target, f"{key}.{TARGET}")
    names = _parameters(function) or {}
    params = {name: value for name, value in offered.items() if name in names}
    params |= {name: _built(value, f"{key}.{name}", offered) for name, value in component.params.items()}
    _check_parameters(function, component, key, args, params)
    return function(*args, **params)


def import_target(path: str, where: str) -> Callable[..., object]:
    """The callable at a dotted path, as `from MODULE import NAME` finds it: the longest module, then what is in it.

    An error inside the module that is imported comes out unchanged.
    """
    parts = path.split(".")
    depth, found = _longest_module(parts[:-1])
    if found is None:
        raise ConfigError(
            f"there is no module {parts[0]}",
            where=where,
            given=path,
            expected="an import path that begins in the folder of your code, or at an installed package",
        )
    for index, part in enumerate(parts[depth:], depth):
        if not hasattr(found, part):
            if _longest_module(parts)[0] == len(parts):
                raise _not_callable(path, where)
            expected = nearest(part, _names(found))
            raise ConfigError(f"{'.'.join(parts[:index])} has no {part}", where=where, given=path, expected=expected)
        found = getattr(found, part)
    if not callable(found):
        raise _not_callable(path, where)
    return found


def _not_callable(path: str, where: str) -> ConfigError:
    return ConfigError("it cannot be called", where=where, given=path, expected="the path of a class or function")


def has_parameter(component: Component, name: str, *, key: str) -> bool:
    """Whether the component names a parameter so. Raises ConfigError where its path leads nowhere."""
    return name in (_parameters(import_target(component.target, f"{key}.{TARGET}")) or {})


def _parameters(function: Callable[..., object]) -> Mapping[str, object] | None:
    signature = _signature(function)
    return signature.parameters if signature is not None else None


def _signature(function: Callable[..., object]) -> inspect.Signature | None:
    """None for what is written in C and does not tell."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _longest_module(parts: Sequence[str]) -> tuple[int, object]:
    """How many of the parts name a module, and that module; (0, None) where not even the first does."""
    found: object = None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, but imports something that is missing
            return count - 1, found
    return len(parts), found


def _names(place: object) -> list[str]:
    submodules = [item.name for item in pkgutil.iter_modules(getattr(place, "__path__", []))]
    return [name for name in [*dir(place), *submodules] if not name.startswith("_")]


def _built(value: object, key: str, offered: Mapping[str, object]) -> object:
    if isinstance(value, Mapping) and isinstance(value.get(TARGET), str):
        component = Component(target=value[TARGET], params={name: item for name, item in value.items() if name != TARGET})
        return build(component, key=key, offered=offered)
    if isinstance(value, Mapping):
        return {name: _built(item, f"{key}.{name}", offered) for name, item in value.items()}
    if isinstance(value, list):
        return [_built(item, f"{key}.{index}", offered) for index, item in enumerate(value)]
    return value


def _check_parameters(
    function: Callable[..., object], component: Component, key: str, args: tuple[object, ...], params: Mapping[str, object]
) -> None:
    if (signature := _signature(function)) is None:
        return  # calling it tells
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in params:
            if name not in signature.parameters:
                raise ConfigError(
                    f"{component.target} has no parameter {name}",
                    where=f"{key}.{name}",
                    given=repr(params[name]),
                    expected=nearest(name, list(signature.parameters)[len(args) :]) or "no parameters",
                )
    try:
        signature.bind(*args, **params)
    except TypeError as error:
        raise ConfigError(f"{component.target} cannot be built: {error}", where=key, given=", ".join(params) or "no parameters") from None
