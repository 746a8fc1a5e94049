"""What could keep a job from running on Kubernetes, found out against a cluster that only answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from launcher.backends.base import Finding, Result
from launcher.backends.kuberay import checks
from launcher.backends.kuberay.kubernetes_api import Forbidden
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import ManualClock
from launcher.core.errors import BackendUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.jobspec.versions import installed_versions
from tests.unit.training.small_jobs import job

pytestmark = pytest.mark.unit
RUNS = "s3://bucket/runs"
Pod = dict[str, Any]


def config(*, runs: str = RUNS, gpu: int | None = 1, workers: str = "2..4", **backend: Any) -> JobConfig:
    model = {"_target_": "models.mlp.MLP", "features": 64, "classes": 3}
    given = KubeRayConfig(**{"image": "registry/launcher:1", "secret": "keys", **backend})
    return replace(job(model, workers=workers), gpu=gpu, runs=runs, backend=given)


def definition(field_name: str = "enableK8sTokenAuth", *, served: bool = True) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for name in (field_name, "authOptions", "rayClusterSpec", "spec"):
        schema = {"properties": {name: schema}}
    return {"spec": {"versions": [{"name": "v1", "served": served, "schema": {"openAPIV3Schema": schema}}]}}


def operator(image: str = "quay.io/kuberay/operator:v1.6.2", available: int = 1) -> dict[str, Any]:
    containers = [{"name": "kuberay-operator", "image": image}]
    return {
        "metadata": {"name": "kuberay-operator", "namespace": "kuberay", "uid": "1"},
        "spec": {"template": {"spec": {"containers": containers}}},
        "status": {"availableReplicas": available},
    }


def ended(phase: str, **state: Any) -> Pod:
    return {"status": {"phase": phase, "containerStatuses": [{"state": {"terminated": state}}]}}


def waiting(reason: str, message: str = "") -> Pod:
    return {"status": {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}}


def answer(problem: str = "", **versions: str) -> Pod:
    store = {"problem": problem, "next": "look at it"}
    return ended("Succeeded", exitCode=0, message=json.dumps({"versions": {**installed_versions(), **versions}, "store": store}))


@dataclass
class FakeApi:
    namespace: str = "default"
    context: str = "test"
    server: str = "https://cluster"
    namespaces: tuple[str, ...] = ("default",)
    forbidden: tuple[str, ...] = ()
    """Names of methods, and verb and resource of rights, that the account has not."""
    resources: tuple[str, ...] = ("rayjobs", "rayclusters")
    crd: dict[str, Any] = field(default_factory=definition)
    deployments: list[dict[str, Any]] = field(default_factory=lambda: [operator()])
    nodes: list[int] = field(default_factory=lambda: [4, 4])
    secrets: tuple[str, ...] = ("keys",)
    looks: list[Pod] = field(default_factory=lambda: [{"status": {"phase": "Pending"}}, answer()])
    """The pod as it is seen each time; the last stays."""
    refused: str = ""
    create_error: Exception | None = None
    delete_error: Exception | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    created: list[Pod] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    def _may(self, method: str) -> None:
        if method in self.forbidden:
            raise Forbidden(f"the cluster does not let this account {method}")

    def server_version(self) -> str:
        self._may("server_version")
        return "v1.36.3"

    def namespace_exists(self) -> bool:
        self._may("namespace_exists")
        return self.namespace in self.namespaces

    def allows(self, verb: str, group: str, resource: str, subresource: str = "") -> bool:
        return f"{verb} {resource}{f'/{subresource}' if subresource else ''}" not in self.forbidden

    def served(self) -> tuple[str, ...]:
        return self.resources

    def definition(self, name: str) -> dict[str, Any]:
        self._may("definition")
        return self.crd

    def operators(self) -> list[dict[str, Any]]:
        self._may("operators")
        return self.deployments

    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None:
        return None if "gpus_of_nodes" in self.forbidden else self.nodes

    def secret_exists(self, name: str) -> bool:
        self._may("secret_exists")
        return name in self.secrets

    def refusal(self, document: Pod) -> str:
        return self.refused

    def create_pod(self, document: Pod) -> None:
        if self.create_error is not None:
            raise self.create_error
        self.created.append(document)

    def find_pod(self, name: str) -> Pod | None:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def delete_pod(self, name: str) -> None:
        self.deleted.append(name)
        if self.delete_error is not None:
            raise self.delete_error

    def pod_events(self, name: str) -> list[dict[str, Any]]:
        return self.events


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is left for those who submit next: image and versions."""
    made: list[Any] = []
    monkeypatch.setattr(checks, "open_store", lambda runs: runs)
    monkeypatch.setattr(checks, "record_image", lambda store, image, versions, clock: made.append((store, image)))
    return made


def examined(api: FakeApi, given: JobConfig | None = None) -> dict[str, Finding]:
    clock = ManualClock()
    found = list(checks.examine(given or config(), open_api=lambda backend: api, clock=clock))
    assert clock.monotonic() <= checks.PROBE_S + 1
    assert [pod["metadata"]["name"] for pod in api.created] == api.deleted or api.create_error is not None
    return {finding.name: finding for finding in found}


def bad(found: dict[str, Finding]) -> dict[str, Result]:
    return {name: finding.result for name, finding in found.items() if finding.result is not Result.OK}


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


def test_a_right_that_jobs_need_is_named_and_fails() -> None:
    found = examined(FakeApi(forbidden=("delete rayjobs", "create roles")))
    assert bad(found) == {"rights": Result.FAILED}
    assert "delete rayjobs.ray.io; create roles.rbac.authorization.k8s.io" in found["rights"].found


def test_a_right_without_which_jobs_run_only_warns() -> None:
    assert bad(examined(FakeApi(forbidden=("get services/proxy", "get secrets")))) == {"further rights": Result.WARNING}


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
    assert checks.judge_operators(deployments).result is result


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
    assert pod["spec"]["activeDeadlineSeconds"] == checks.PROBE_S
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
def test_what_keeps_the_pod_from_answering_is_said(look: Pod, says: str, code: ExitCode) -> None:
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


def test_a_store_that_a_pod_does_not_reach_is_the_pods_finding(recorded: list[Any]) -> None:
    found = examined(FakeApi(looks=[answer("connection refused")]))
    assert bad(found) == {"run store from a pod": Result.FAILED}
    assert found["run store from a pod"].exit_code is ExitCode.INFRASTRUCTURE
    assert recorded == []


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
