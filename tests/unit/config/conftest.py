import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], None]:
    def write(path: str, text: str) -> None:
        file = folder / "configs" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the current one; nothing in the environment decides."""
    monkeypatch.chdir(tmp_path)
    for name in ("LAUNCHER_RUNS", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    assert not os.listdir(tmp_path)
    return tmp_path
