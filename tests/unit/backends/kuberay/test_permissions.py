"""The rights that are missed: those that jobs need fail, others warn."""

from __future__ import annotations

import pytest

from launcher.backends.base import Result
from tests.unit.backends.kuberay.fake_checks_api import (
    FakeApi,
    bad,
    examined,
)

pytestmark = pytest.mark.unit


def test_a_right_that_jobs_need_is_named_and_fails() -> None:
    found = examined(FakeApi(forbidden=("delete rayjobs", "create roles")))
    assert bad(found) == {"rights": Result.FAILED}
    assert "delete rayjobs.ray.io; create roles.rbac.authorization.k8s.io" in found["rights"].found


def test_a_right_without_which_jobs_run_only_warns() -> None:
    assert bad(examined(FakeApi(forbidden=("get services/proxy", "get secrets")))) == {"further rights": Result.WARNING}
