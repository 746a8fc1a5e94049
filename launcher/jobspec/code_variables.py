"""Which environment variables Python code asks for, as far as their names stand in it. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress


def variables_read(content: Mapping[str, bytes]) -> frozenset[str]:
    """The names that the Python files among these read from the environment. `content`: of each file, by its path.

    A file that is no Python is passed over: its import will say so.
    """
    found: set[str] = set()
    for path, text in content.items():
        if path.endswith(".py") and (b"environ" in text or b"getenv" in text):
            with suppress(SyntaxError, ValueError, RecursionError):
                found.update(_names(ast.parse(text)))
    return frozenset(found)


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=place, slice=ast.Constant(value=str(name)), ctx=ast.Load()) if _is_environ(place):
                yield name
            case ast.Call(func=ast.Attribute(value=place, attr="get" | "pop"), args=[ast.Constant(value=str(name)), *_]) if _is_environ(
                place
            ):
                yield name
            case ast.Call(func=ast.Name(id="getenv") | ast.Attribute(attr="getenv"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def _is_environ(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "environ") or (isinstance(node, ast.Attribute) and node.attr == "environ")
