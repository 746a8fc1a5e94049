"""When a worker may be called into a generation."""

from __future__ import annotations

import pytest

from launcher.runtime.worker.activity import Activity

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("phase", "ready"), [("building", False), ("ready", True), ("training", True), ("waiting", True), ("released", True), ("failed", False)]
)
def test_who_has_not_built_or_has_failed_is_not_ready(phase: str, ready: bool) -> None:
    activity = Activity()
    assert not activity.ready
    activity.phase = phase
    assert activity.ready == ready
