"""The schema is the one description of a key: configs/ and docs/configuration.md say what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
import yaml  # type: ignore[import-untyped]

from launcher.config.describe import BEGIN, END, SHIPPED, Key, as_yaml, documents, keys_of
from launcher.config.keys import NotNegative, Positive
from launcher.config.schema import COMPONENTS, Component, JobConfig, KubeRayConfig
from launcher.config.shipped import shipped_folder
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.unit
ROOT = shipped_folder()
GROUPS = [kind for hint in get_type_hints(JobConfig).values() for kind in (hint, *get_args(hint)) if kind.__module__.endswith("groups")]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A group."""

    bare: bool = True
    length: Positive[float] | None = None
    """Spread over
    two lines."""
    count: NotNegative[int]
    """How many."""
    number: str = "1"
    mode: Literal["on", "off"] = "off"
    places: tuple[str, ...] = ()


def test_a_key_is_described_by_its_type_its_default_and_the_text_under_it() -> None:
    assert keys_of(Example) == [
        Key("bare", "true or false", "true", ""),
        Key("length", "a number, more than 0, or null", "null", "Spread over two lines."),
        Key("count", "a whole number, 0 or more", "???", "How many."),
        Key("number", "text", '"1"', ""),
        Key("mode", "`on`, `off`", '"off"', ""),
        Key("places", "a list", "[]", ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        ":",
        "a: b",
        "- a",
        "[",
        "{a",
        "# a",
        "a #b",
        "'",
        '"',
        "%",
        "@a",
        "!a",
        "*a",
        "&a",
        "|",
        "",
        " a",
        "null",
        "no",
        "1e3",
        "2026-01-01",
        "a\nb",
    ],
)
def test_a_default_that_yaml_would_not_read_as_this_text_is_quoted(text: str) -> None:
    written = as_yaml(text)
    assert written == json.dumps(text)
    assert yaml.safe_load(f"key: {written}\n") == {"key": text}


@pytest.mark.parametrize("kind", [JobConfig, *(kind for kind in GROUPS if kind is not Component)])
def test_every_key_has_a_text(kind: type) -> None:
    assert [key.name for key in keys_of(kind) if not key.text and key.name != "name"] == []


@pytest.mark.parametrize("file", sorted(documents(ROOT)), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_says_what_the_schema_says(file: Path) -> None:
    if file.read_text() != documents(ROOT)[file]:
        pytest.fail(f"{file.relative_to(ROOT)} differs from launcher/config: run `python -m launcher.config.describe` to write it anew")


def test_every_file_of_a_group_with_keys_is_written() -> None:
    by_hand = {"experiment", *COMPONENTS}
    files = {file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name not in by_hand}
    assert files | {ROOT / "docs" / "configuration.md"} == set(documents(ROOT))


def test_what_the_files_set_apart_from_the_schema_is_there() -> None:
    names = {key.name for key in keys_of(JobConfig)} | {f"{name}.{key.name}" for name in ("trainer",) for key in keys_of(_kind(name), name)}
    assert set(SHIPPED) <= names


def _kind(group: str) -> type:
    kind: type = get_type_hints(JobConfig)[group]
    return kind


def test_the_components_are_the_groups_whose_keys_are_arguments() -> None:
    hints = get_type_hints(JobConfig)
    assert [item.name for item in fields(JobConfig) if Component in (hints[item.name], *get_args(hints[item.name]))] == list(COMPONENTS)


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("defaults: []\n\nseed: 0\n")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "configuration.md"
    page.write_text(f"# Configuration\n{BEGIN}\n")
    with pytest.raises(ConfigError, match="not marked"):
        documents(tmp_path)
    page.write_text(f"# Configuration\n{BEGIN}\nof before\n{END}\nrest\n")
    written = documents(tmp_path)[page]
    assert written.startswith(f"# Configuration\n{BEGIN}\n\n| key |")
    assert written.endswith(f"\n\n{END}\nrest\n")
    assert "of before" not in written


def test_a_required_key_is_left_open() -> None:
    assert {key.name: key.default for key in keys_of(KubeRayConfig, "backend")}["image"] == "???"
