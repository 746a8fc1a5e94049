"""The configurations and models that come with launcher are found in a checkout and beside an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import shipped
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.unit


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "__file__", str(folder / "launcher" / "config" / "shipped.py"))


def test_in_a_checkout_it_is_the_repository() -> None:
    assert shipped.shipped_folder() == Path(__file__).resolve().parents[3]


def test_installed_it_is_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="missing"):
        shipped.shipped_folder()
    (tmp_path / "launcher_shipped" / "configs").mkdir(parents=True)
    (tmp_path / "launcher_shipped" / "configs" / "train.yaml").touch()
    assert shipped.shipped_folder() == tmp_path / "launcher_shipped"
