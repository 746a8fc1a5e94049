"""What an API server checks of a custom resource against its structural schema, strictly.

An API server drops a field that the schema does not know, in silence unless it is asked for more; here it is a problem like
any other. Rules in CEL are not evaluated. A keyword that is not known here is an error of the test, not of the document.

Reference: structural schemas of apiextensions.k8s.io/v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_BOUNDS = {"int32": 2**31, "int64": 2**63}
# The first two lines are checked below; the rest says how to apply, default or merge, which a whole document does not show.
_KNOWN = {
    *("type", "properties", "additionalProperties", "required", "items", "enum", "pattern", "minimum", "maxLength", "minLength"),
    *("minItems", "nullable", "format", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-map-keys"),
    *("anyOf", "default", "x-kubernetes-list-type", "x-kubernetes-map-type", "x-kubernetes-validations"),
}


def problems(document: Any, schema: Mapping[str, Any], path: str = "") -> list[str]:
    """Each as `path: what is wrong`; [] for a valid document."""
    return list(_problems(document, schema, path))


def _problems(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if unknown := schema.keys() - _KNOWN:
        raise NotImplementedError(f"{path}: the schema has {sorted(unknown)}")
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: null"
        return
    if schema.get("x-kubernetes-int-or-string"):
        allowed: tuple[type, ...] = (int, str)
    else:
        allowed = _TYPES.get(schema.get("type", ""), (object,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed and object not in allowed):
        yield f"{path}: {value!r} is no {' or '.join(kind.__name__ for kind in allowed)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str):
        yield from _of_text(value, schema, path)
    elif isinstance(value, (int, float)):
        yield from _of_number(value, schema, path)
    elif isinstance(value, list):
        yield from _of_list(value, schema, path)
    elif isinstance(value, dict):
        yield from _of_object(value, schema, path)


def _of_text(value: str, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: {value!r} has {len(value)} characters"


def _of_number(value: float, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    bound = _BOUNDS.get(schema.get("format", ""))
    if value < schema.get("minimum", value) or (bound is not None and not -bound <= value < bound):
        yield f"{path}: {value} is out of bounds"


def _of_list(value: list[Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{path}: {len(value)} items"
    for index, item in enumerate(value):
        yield from _problems(item, schema["items"], f"{path}[{index}]")
    if keys := schema.get("x-kubernetes-list-map-keys"):
        defaults = {key: schema["items"]["properties"][key].get("default") for key in keys}
        found = [tuple(item.get(key, defaults[key]) for key in keys) for item in value if isinstance(item, dict)]
        for key in {each for each in found if found.count(each) > 1}:
            yield f"{path}: {key} is there more than once"


def _of_object(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for key in schema.get("required", ()):
        if key not in value and "default" not in schema["properties"].get(key, {}):
            yield f"{path}.{key}: is missing"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for key, item in value.items():
        if key in properties:
            yield from _problems(item, properties[key], f"{path}.{key}")
        elif isinstance(others, Mapping):
            yield from _problems(item, others, f"{path}.{key}")
        elif not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{key}: no such field"
