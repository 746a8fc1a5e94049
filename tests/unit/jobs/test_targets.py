"""What the configuration names, against the code that goes with the job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.jobs.targets import refuse_missing_modules
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
FOLDER = Path("/home/me/project")
SHIPPED = {"models/digits.py": "class Digits: ..."}
PACKAGE = {"models/__init__.py": "from models.small import Small\nclass Net:\n    class Block: ...\n", "models/small.py": ""}


def look(target: str, files: Mapping[str, str], **changes: object) -> None:
    config = job_config("memory://runs", model={"_target_": target}, **changes)
    refuse_missing_modules(config, {path: text.encode for path, text in {**SHIPPED, **files}.items()}, FOLDER)


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("models.Net", PACKAGE),
        ("models.Small", PACKAGE),
        ("models.Net.Block", PACKAGE),
        ("models.small.Net", PACKAGE),
        ("models.Net", {"models.py": "Net = 1"}),
        ("net.Net", {"net.py": ""}),
        ("net.Net.Block", {"net.py": "class Net:\n    class Block: ...\n"}),
        ("net.parts.Net", {"net/parts.py": ""}),  # a folder without __init__.py
        ("net.made.Net", {"net/__init__.py": "def __getattr__(name): ..."}),
        ("net.made.Net", {"net/__init__.py": "from elsewhere import *"}),
        ("net.made.Net", {"net/__init__.py": "import elsewhere.made as made"}),
        ("net.made.Net", {"net/__init__.py": "def (:"}),
        ("torch.nn.Linear", {}),
    ],
)
def test_what_can_be_found_is_left_to_the_worker(target: str, files: Mapping[str, str]) -> None:
    look(target, files)


@pytest.mark.parametrize(
    ("target", "files", "what", "expected"),
    [
        ("models.smal.Net", PACKAGE, "no module models.smal in the code", "did you mean small?"),
        ("models.Net", {}, "no module models in the code", "digits"),
        ("net.Net", {"net/parts.py": ""}, "no module net in the code", "parts"),
        ("net.part.Net", {"net/__init__.py": "", "net/parts.py": ""}, "no module net.part in the code", "did you mean parts?"),
        ("nett_of_mine.Net", {"net_of_mine.py": ""}, "no module nett_of_mine", "did you mean net_of_mine?"),
    ],
)
def test_what_cannot_be_found_is_refused(target: str, files: Mapping[str, str], what: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        look(target, files)
    assert (caught.value.where, caught.value.given) == ("model._target_", target)
    assert expected in caught.value.expected


def test_a_package_that_only_the_cluster_may_have_is_left_to_it() -> None:
    look("only_there.Net", {}, backend={"name": "ray", "address": "http://head:8265"})
