"""docs/configuration.md names every key and every choice there is, and none that is not."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from launcher.config.schema import Component, JobConfig
from launcher.record.desired import WorkerBounds

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "configuration.md").read_text()


def keys(kind: type = JobConfig, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for item in fields(kind):  # type: ignore[arg-type]
        hint = get_type_hints(kind)[item.name]
        kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and kind not in (Component, WorkerBounds)]
        if kinds:
            found |= {key for kind in kinds for key in keys(kind, f"{item.name}.")}
        elif Component not in (hint, *getattr(hint, "__args__", ())):
            found.add(prefix + item.name)
    return found


def test_every_key_is_documented_and_no_other() -> None:
    table = PAGE.partition("## Keys")[2]
    documented = {word for line in table.splitlines() if line.startswith("| `") for word in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert documented == keys()


def test_every_choice_is_documented() -> None:
    table = PAGE.partition("## Groups")[2].partition("## Keys")[0]
    for file in sorted((ROOT / "configs").glob("*/*.yaml")):
        assert f"`{file.parent.name}`" in table, file
        assert f"`{file.stem}`" in table, file
