"""What import-linter does not hold: no circle of imports inside a package, and each file of the runtime says where it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launcher").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported(module: str) -> Iterator[str]:
    """The modules of launcher that this one imports, wherever in it the import stands."""
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_the_check_finds_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    # The package's own front names what others have, and imports it when it is asked for.
    graph = {module: set(imported(module)) - {module, "launcher"} for module in MODULES}
    assert circles(graph) == []


@pytest.mark.parametrize("path", [path for path in FILES if "runtime" in path.parts], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_the_runtime_says_in_its_first_line_where_it_runs_or_that_it_is_pure(path: Path) -> None:
    document = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = document.partition("\n")[0]
    assert "Pure" in first or "pure" in first or "Runs in" in first or "runs in" in first, first
