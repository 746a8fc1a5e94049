from __future__ import annotations

import os
import time

import pytest

from launcher.core.process import set_variables

pytestmark = pytest.mark.unit


def test_variables_hold_in_this_process_from_now_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"A": "1", "KEPT": "2"})
    set_variables({"A": "=\n", "B": ""})
    assert os.environ == {"A": "=\n", "B": "", "KEPT": "2"}


def test_the_time_zone_is_another_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    try:
        set_variables({"TZ": "Asia/Tokyo"})
        assert time.timezone == -9 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
