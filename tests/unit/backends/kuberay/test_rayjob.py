"""A job as Kubernetes objects, rendered whole: what the cluster is asked for, and that no secret is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from launcher.backends.kuberay import rayjob
from launcher.config.schema import KubeRayConfig
from launcher.core.types import RunId
from launcher.jobspec.job import CodeRef, JobSpec
from tests.unit.backends import golden
from tests.unit.training.small_jobs import job

pytestmark = pytest.mark.unit
RUNS = "s3://bucket/runs"


def spec(**backend: Any) -> JobSpec:
    model = {"_target_": "models.mlp.MLP", "features": 64, "classes": 3}
    config = replace(job(model, workers="2..4"), gpu=1, runs=RUNS, backend=KubeRayConfig(image="registry/launcher:1", **backend))
    return JobSpec(
        run_id=RunId("mlp-abcdef"),
        name="digits",
        config=config,
        code=CodeRef(digest="0" * 64),
        versions={"ray": "2.60.0", "python": "3.11.7"},
        submitted_at="2026-11-24T12:00:00Z",
    )


def rendered(**backend: Any) -> Any:
    made = spec(**backend)
    assert isinstance(made.config.backend, KubeRayConfig)
    return rayjob.rayjob(made, made.config.backend, RUNS)


def group_of(document: Any) -> Any:
    (group,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def test_the_cluster_begins_with_the_least_and_may_grow_to_the_most() -> None:
    group = group_of(rendered())
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 4)
    cluster = rendered()["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_worker_pod_has_room_for_one_worker_and_the_head_for_none() -> None:
    document = rendered()
    group, head = group_of(document), document["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert group["rayStartParams"]["num-gpus"] == "1"
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {rayjob.WORKER_RESOURCE: 1}
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert f"--worker-resource {rayjob.WORKER_RESOURCE}" in document["spec"]["entrypoint"]


def test_a_slice_is_counted_by_the_name_that_its_nodes_give_it() -> None:
    limits = group_of(rendered(gpu_resource="nvidia.com/mig-1g.10gb"))["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-1g.10gb"] == "1"


def test_pods_run_under_the_restricted_profile() -> None:
    cluster = rendered()["spec"]["rayClusterSpec"]
    for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_a_pod_may_end_its_drain_before_it_is_killed() -> None:
    pod = group_of(rendered())["template"]["spec"]
    drain = next(each["value"] for each in pod["containers"][0]["env"] if each["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    assert int(drain) + rayjob.TERMINATION_MARGIN_S <= pod["terminationGracePeriodSeconds"]


def test_a_secret_is_named_and_given_to_the_head_alone() -> None:
    document = rendered(secret="keys")
    head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "keys" not in json.dumps(group_of(document))


def test_what_is_not_foreseen_is_merged_into_the_pods_of_the_workers() -> None:
    overlay = {"spec": {"hostNetwork": True, "tolerations": None}}
    pod = group_of(rendered(overlay=overlay))["template"]["spec"]
    assert pod["hostNetwork"] is True
    assert "tolerations" not in pod
    assert pod["containers"], "the rest stays"


def test_a_drain_of_nodes_stops_at_the_least() -> None:
    owner = {"kind": "RayJob", "name": "mlp-abcdef", "uid": "1"}
    companions: dict[str, Any] = {str(each["kind"]): each for each in rayjob.companions(spec(), owner)}
    budget = companions["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == 2
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "worker"
    assert all(each["metadata"]["ownerReferences"] == [owner] for each in companions.values())


def test_the_controller_may_change_the_bounds_of_its_cluster_and_its_own_budget() -> None:
    role = next(each for each in rayjob.companions(spec(), {}) if each["kind"] == "Role")
    clusters, budgets = role["rules"]
    assert (clusters["resources"], clusters["verbs"]) == (["rayclusters"], ["get", "patch"])
    assert (budgets["resources"], budgets["resourceNames"]) == (["poddisruptionbudgets"], ["mlp-abcdef"])


def test_secrets_of_the_job_are_named_and_given_to_the_head_alone_and_no_value_is_there() -> None:
    made = golden.specs()["everything"]
    document: Any = golden.documents(made)[0]
    head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["env"][-1] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hugging-face", "key": "token"}}}
    assert head["envFrom"] == [{"secretRef": {"name": "launcher-store"}}], "which has the other one"
    worker = json.dumps(group_of(document))
    assert not [word for word in ("HF_TOKEN", "hugging-face", "MLFLOW_TOKEN", "DATA_ROOT") if word in worker]
