"""The pod that tries the image and the run store: what it is, what it tells, and that it goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.backends.base import Result
from launcher.backends.kuberay import checks
from launcher.backends.kuberay.kubernetes_api import Forbidden
from launcher.backends.kuberay.probe_pod import PROBE_S
from launcher.core.clock import ManualClock
from launcher.core.errors import BackendUnavailable
from launcher.core.exit_codes import ExitCode
from tests.unit.backends.kuberay.fake_checks_api import (
    RUNS,
    FakeApi,
    Look,
    answer,
    config,
    ended,
    examined,
    waiting,
)

pytestmark = pytest.mark.unit


def test_the_pod_is_a_heads_but_for_what_it_runs() -> None:
    api = FakeApi()
    examined(api)
    (pod,) = api.created
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "launcher.runtime.pod.probe", RUNS, "--report", "/dev/termination-log"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["activeDeadlineSeconds"] == PROBE_S
    assert "serviceAccountName" not in pod["spec"]
    assert not pod["spec"]["automountServiceAccountToken"]


@pytest.mark.parametrize(
    ("look", "says", "code"),
    [
        (waiting("ErrImagePull", "not found"), "the image cannot be had: ErrImagePull: not found", ExitCode.USAGE),
        (waiting("ImagePullBackOff"), "the image cannot be had: ImagePullBackOff", ExitCode.USAGE),
        (waiting("CreateContainerConfigError", 'secret "keys" not found'), 'secret "keys" not found', ExitCode.USAGE),
        (ended("Failed", exitCode=128, reason="StartError", message="exec: python: not found"), "exec: python: not found", ExitCode.USAGE),
        (ended("Failed", exitCode=1, reason="Error", message="Traceback\nNo module named launcher\n"), "No module named", ExitCode.USAGE),
        (ended("Failed", exitCode=137, reason="OOMKilled"), "the pod was ended: OOMKilled", ExitCode.INFRASTRUCTURE),
        (ended("Succeeded", exitCode=0, message="hello"), "something else than a report: hello", ExitCode.USAGE),
        (answer(ray="1.0.0"), "ray 1.0.0 instead of", ExitCode.USAGE),
        (waiting("ContainerCreating"), "no answer within 90 s: ContainerCreating", ExitCode.INFRASTRUCTURE),
    ],
)
def test_what_keeps_the_pod_from_answering_is_said(look: Look, says: str, code: ExitCode) -> None:
    found = examined(FakeApi(looks=[look]))["pod"]
    assert (found.result, found.exit_code) == (Result.FAILED, code)
    assert says in found.found
    assert found.fix


def test_a_pod_that_no_node_takes_is_waited_for_and_then_told_in_the_schedulers_words() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    found = examined(FakeApi(looks=[{"status": {"phase": "Pending", "conditions": [condition]}}]))["pod"]
    assert "0/2 nodes are available" in found.found
    assert found.exit_code is ExitCode.INFRASTRUCTURE


def test_the_last_event_says_what_a_late_pod_waits_for() -> None:
    events = [
        {"lastTimestamp": "2026-01-01T00:00:02Z", "message": "pulling"},
        {"lastTimestamp": "2026-01-01T00:00:01Z", "message": "first"},
    ]
    found = examined(FakeApi(looks=[waiting("ContainerCreating")], events=events))["pod"]
    assert "ContainerCreating; pulling" in found.found


def test_a_quota_that_refuses_the_pod_is_told() -> None:
    found = examined(FakeApi(create_error=Forbidden("the cluster does not let this account create a pod", given="exceeded quota")))
    assert "exceeded quota" in found["pod"].found


def test_a_pod_that_cannot_be_deleted_is_named() -> None:
    api = FakeApi(delete_error=BackendUnavailable("no answer"))
    found = examined(api)["pod left behind"]
    assert api.created[0]["metadata"]["name"] in found.fix


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_the_pod_goes_also_when_the_wait_is_interrupted(interruption: type[BaseException]) -> None:
    class Interrupted(ManualClock):
        def sleep(self, seconds: float) -> None:
            raise interruption

    api = FakeApi(looks=[waiting("ContainerCreating")])
    with pytest.raises(interruption):
        list(checks.examine(config(), open_api=lambda backend: api, clock=Interrupted()))
    assert len(api.deleted) == 1


@pytest.mark.parametrize("disappear", [lambda api: setattr(api, "find_pod", lambda name: None)])
def test_a_pod_that_somebody_else_deletes_is_told(disappear: Callable[[FakeApi], None]) -> None:
    api = FakeApi()
    disappear(api)
    assert "deleted by somebody else" in examined(api)["pod"].found
