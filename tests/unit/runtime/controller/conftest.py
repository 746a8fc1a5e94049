"""A controller over fakes, for the tests of its parts."""

from __future__ import annotations

import pytest

from tests.unit.runtime.controller.harness import Harness


@pytest.fixture
def harness() -> Harness:
    return Harness()
