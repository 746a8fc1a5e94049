"""What contributors are asked to do is written down once: the checks of a commit are those of `make check`, and each decision is in the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = sorted(DECISIONS.glob("[0-9]*.md"))


def commands_of(target: str) -> list[str]:
    """The lines of a target of the Makefile, as the shell gets them."""
    makefile = (ROOT / "Makefile").read_text()
    [recipe] = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for hook in local["hooks"] if "pre-commit" in hook["stages"]]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in hooks] == commands_of("check")
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_every_decision_is_in_the_index_under_its_title() -> None:
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+) \| (\S+) \|$", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    written = []
    for page in PAGES:
        number, title, date = re.findall(r"\A# (\d+)\. (.+)\n\n(\d{4}-\d\d-\d\d) · ", page.read_text())[0]
        written.append((f"{int(number):04d}", page.name, title, date))
    assert rows == written
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_says_why_what_and_what_follows(page: Path) -> None:
    text = page.read_text()
    assert page.name.startswith(f"{int(text[2 : text.index('.')]):04d}-")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
