"""The operator and its definitions have to be there and new enough."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.backends.base import Result
from launcher.backends.kuberay.answers import Deployment, parse
from launcher.backends.kuberay.operator_checks import judge_operators
from launcher.core.exit_codes import ExitCode
from tests.unit.backends.kuberay.fake_checks_api import (
    FakeApi,
    bad,
    definition,
    examined,
    operator,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("api", "says"),
    [
        (FakeApi(resources=()), "does not serve rayjobs.ray.io and rayclusters.ray.io"),
        (FakeApi(crd=definition("mode")), "older than KubeRay 1.6"),
        (FakeApi(crd=definition(served=False)), "not served in v1"),
    ],
)
def test_kuberay_has_to_be_there_and_new_enough(api: FakeApi, says: str) -> None:
    found = examined(api)
    assert bad(found) == {"KubeRay": Result.FAILED}
    assert says in found["KubeRay"].found
    assert found["KubeRay"].exit_code is ExitCode.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("deployments", "result"),
    [
        ([], Result.WARNING),
        ([operator()], Result.OK),
        ([operator("registry:5000/operator")], Result.WARNING),
        ([operator("registry:5000/operator:v1.10.0@sha256:00")], Result.OK),
        ([operator("quay.io/kuberay/operator:v1.5.1")], Result.FAILED),
        ([operator(available=0)], Result.FAILED),
    ],
)
def test_the_operator_has_to_run_in_a_version_that_fits(deployments: list[dict[str, Any]], result: Result) -> None:
    assert judge_operators([parse(deployment, Deployment) for deployment in deployments]).result is result
