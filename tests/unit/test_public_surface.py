"""The names that people write down. A change here breaks somebody's notebook or script: it needs a reason."""

from __future__ import annotations

import inspect

import pytest

import launcher
from launcher.cli.verbs import VERBS

pytestmark = pytest.mark.unit


def test_the_package_offers_these_names() -> None:
    assert sorted(launcher.__all__) == ["JobConfig", "LauncherError", "Run", "RunStatus", "__version__", "attach", "submit"]
    for name in launcher.__all__:
        assert getattr(launcher, name) is not None
    assert set(launcher.__all__) <= set(dir(launcher))
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        _ = launcher.sumbit  # type: ignore[attr-defined]


def test_a_run_offers_these_verbs() -> None:
    public = {name for name, _ in inspect.getmembers(launcher.Run) if not name.startswith("_")}
    assert public == {"id", "name", "uri", "status", "wait", "logs", "events", "metrics", "resize", "stop", "resume", "dashboard"}


def test_the_command_offers_these_verbs() -> None:
    assert list(VERBS) == [
        "train",
        "plan",
        "doctor",
        "ls",
        "status",
        "logs",
        "events",
        "resize",
        "stop",
        "resume",
        "dashboard",
        "completion",
    ]
