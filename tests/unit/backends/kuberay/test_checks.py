"""What could keep a job from running on Kubernetes, found out against a cluster that only answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.backends.base import Result
from launcher.backends.kuberay import checks
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import BackendUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.jobspec.versions import installed_versions
from tests.unit.backends.kuberay.fake_checks_api import (
    RUNS,
    FakeApi,
    answer,
    bad,
    config,
    ended,
    examined,
)

pytestmark = pytest.mark.unit


def test_a_cluster_on_which_jobs_run_passes_in_order(recorded: list[Any]) -> None:
    found = examined(FakeApi())
    assert bad(found) == {}
    assert list(found) == [
        *("cluster", "namespace", "rights", "further rights", "KubeRay", "KubeRay operator", "GPUs", "secret"),
        *("pod", "run store from a pod"),
    ]
    assert recorded == [(RUNS, "registry/launcher:1")]


def test_a_context_that_is_not_there_is_a_mistake_and_no_cluster_at_all_is_not() -> None:
    def refuse(backend: KubeRayConfig) -> FakeApi:
        raise BackendUnavailable("there is no cluster", next="set KUBECONFIG")

    for context, code in (("nowhere", ExitCode.USAGE), (None, ExitCode.INFRASTRUCTURE)):
        (found,) = checks.examine(config(context=context), open_api=refuse)
        assert (found.result, found.exit_code, found.fix) == (Result.FAILED, code, "set KUBECONFIG")


def test_a_setting_that_no_cluster_takes_is_found_first() -> None:
    (found,) = checks.examine(config(image="Not An Image"), open_api=lambda backend: FakeApi())
    assert (found.name, found.exit_code) == ("settings", ExitCode.USAGE)


def test_without_its_namespace_nothing_more_is_asked() -> None:
    found = examined(FakeApi(namespace="nowhere"))
    assert list(found) == ["cluster", "namespace"]
    assert found["namespace"].exit_code is ExitCode.USAGE
    assert "create namespace nowhere" in found["namespace"].fix


def test_a_server_that_does_not_answer_ends_the_checks() -> None:
    assert list(examined(FakeApi(forbidden=("server_version",)))) == ["cluster"]


def test_who_may_have_no_pod_is_told_that_it_was_not_tried() -> None:
    api = FakeApi(forbidden=("create pods",))
    found = examined(api)
    assert bad(found) == {"further rights": Result.WARNING, "pod": Result.WARNING}
    assert api.created == []


def test_what_may_not_be_looked_at_warns() -> None:
    found = examined(FakeApi(forbidden=("namespace_exists", "definition", "operators", "gpus_of_nodes", "secret_exists")))
    assert set(bad(found).values()) == {Result.WARNING}
    assert list(bad(found)) == ["namespace", "KubeRay", "KubeRay operator", "GPUs", "secret"]


@pytest.mark.parametrize(
    ("nodes", "gpu", "result"),
    [
        ([4, 4], 4, Result.OK),
        ([4, 4], 5, Result.FAILED),
        ([3, 1], 2, Result.FAILED),
        ([], 1, Result.FAILED),
        ([], 0, Result.OK),
        ([0], None, Result.WARNING),
        ([1], None, Result.OK),
        (None, 1, Result.WARNING),
    ],
)
def test_gpus_are_counted_node_by_node(nodes: list[int] | None, gpu: int | None, result: Result) -> None:
    given = config(gpu=gpu)
    assert isinstance(given.backend, KubeRayConfig)
    found = checks.judge_gpus(nodes, given, given.backend)
    assert found.result is result
    assert result is not Result.FAILED or found.exit_code is ExitCode.INFRASTRUCTURE


def test_without_its_secret_the_image_alone_is_tried(recorded: list[Any]) -> None:
    versions = json.dumps({"versions": installed_versions(), "store": None})
    api = FakeApi(secrets=(), looks=[ended("Succeeded", message=versions)])
    found = examined(api)
    assert bad(found) == {"secret": Result.FAILED, "run store from a pod": Result.WARNING}
    assert found["secret"].exit_code is ExitCode.USAGE
    (container,) = api.created[0]["spec"]["containers"]
    assert "envFrom" not in container
    assert RUNS not in container["command"]
    assert recorded == []


def test_a_rayjob_that_the_cluster_would_refuse_is_told_in_its_words() -> None:
    found = examined(FakeApi(refused='unknown field "spec.x"'))
    assert bad(found) == {"RayJob": Result.FAILED}
    assert 'unknown field "spec.x"' in found["RayJob"].found


def test_pods_do_not_reach_a_folder_of_this_machine() -> None:
    api = FakeApi(looks=[ended("Succeeded", message=json.dumps({"versions": installed_versions(), "store": None}))])
    found = examined(api, config(runs="/home/me/runs"))
    assert bad(found) == {"run store from a pod": Result.FAILED}
    assert found["run store from a pod"].exit_code is ExitCode.USAGE


def test_a_store_that_a_pod_does_not_reach_is_the_pods_finding(recorded: list[Any]) -> None:
    found = examined(FakeApi(looks=[answer("connection refused")]))
    assert bad(found) == {"run store from a pod": Result.FAILED}
    assert found["run store from a pod"].exit_code is ExitCode.INFRASTRUCTURE
    assert recorded == []
