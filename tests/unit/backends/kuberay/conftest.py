from __future__ import annotations

from typing import Any

import pytest

from launcher.backends.kuberay import checks


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is left for those who submit next: image and versions."""
    made: list[Any] = []
    monkeypatch.setattr(checks, "open_store", lambda runs: runs)
    monkeypatch.setattr(checks, "record_image", lambda store, image, versions, clock: made.append((store, image)))
    return made
