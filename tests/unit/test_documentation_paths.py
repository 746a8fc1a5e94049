"""What the pages name is there: files, modules that are run, targets of make, and where links lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("launcher", "configs", "models", "tests", "benchmarks", "deploy", "notebooks", "docs")
FILES = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if path.is_file()}
TARGETS = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OF_THE_READER = {
    "README.md": {"models/mine.py"},
    "docs/backends.md": {"launcher/backends/ssh/__init__.py", "launcher/backends/ssh/backend.py"},
    "docs/extending.md": {"models/pixel_counter.py", "models/pictures.py", "models/regression.py"},
}
"""Files that a page tells its reader to write."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_python_file_exists(page: Path) -> None:
    """A page may leave out the folders in front: `core/errors.py`, or `coordinator.py` in a table about one folder."""
    named = set(re.findall(r"(?<![\w./{<-])(?:\.\./)*([\w/]+\.py)\b", page.read_text()))
    own = OF_THE_READER.get(page.relative_to(ROOT).as_posix(), set())
    assert named >= own
    missing = {name for name in named - own if not any(f"/{file}".endswith(f"/{name}") for file in FILES)}
    assert not missing


@every_page
def test_every_module_that_is_run_exists(page: Path) -> None:
    modules = set(re.findall(r"python -m ((?:launcher|tests|benchmarks)\.[\w.]*\w)", page.read_text()))
    missing = {name for name in modules if not {f"{name.replace('.', '/')}{end}" for end in (".py", "/__main__.py")} & FILES}
    assert not missing


@every_page
def test_every_target_of_make_exists(page: Path) -> None:
    words = re.findall(r"(?:`|^ *)make ([a-z][\w.-]*)", page.read_text(), re.MULTILINE)
    assert {word.rstrip(".") for word in words} <= TARGETS


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_that_code_names_exists() -> None:
    code = [ROOT / name for name in FILES if name.endswith(".py") and name.startswith(("launcher/", "benchmarks/", "tests/"))]
    named = {page for file in code for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text())}
    assert named
    assert {page for page in named if not (ROOT / page).is_file()} == set()
