"""A job as Kubernetes objects: the RayJob, and what it needs beside it. Pure: a JobSpec in, documents out.

The Ray cluster has a head, which runs the supervisor and the controller and no worker, and one group of worker pods, one worker each.
It begins with `workers.min` pods. The controller starts workers up to the target, and Ray's autoscaler adds a pod for each that finds none.

References: RayJob and RayCluster of ray.io/v1 (KubeRay 1.6); the restricted profile of Kubernetes' Pod Security Standards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from launcher.backends.kuberay.pod_overlay import KEY, WORKER, as_json, merge
from launcher.backends.supervisor_command import STATE_FOLDER, supervisor_command
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.types import Json, JsonObject
from launcher.jobspec.environment import references
from launcher.jobspec.job import JobSpec

RUN_LABEL = "launcher/run"
POD_GROUP = "workers"
WORKER_RESOURCE = "launcher_worker"
"""A resource of Ray: each worker pod has one and each worker takes one, so that Ray asks for a pod for every worker, with or without a GPU."""
WORKERS_FOLDER = f"{STATE_FOLDER}/workers"
TERMINATION_MARGIN_S = 30
"""Between the end of a drain and the kill: time to upload a checkpoint's part and to end."""
HEAD_TERMINATION_S = 10
"""From a head's SIGTERM to its kill. It always takes that long, because the autoscaler's container ignores SIGTERM, and the next head
starts only when this one is gone. Nothing is drained on a head: no worker is there, and what the controller knows is in the run store."""
AUTOSCALER: JsonObject = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}
USER = 1000
"""The id of the user that the image runs as."""
LONGEST_NAME = 47
"""Characters in a RayJob's name, so that the names that KubeRay derives from it fit."""
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""Seconds that `ray start --block` announces after SIGTERM that its node drains, before it ends Ray's processes; 0: not at all."""
_RESTRICTED: JsonObject = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations of a head's pod: a run that loses its head starts again from the last checkpoint, so no autoscaler may move it for tidiness."""


def object_name(run_id: str) -> str:
    """The name of every object of a run; a run's id is a DNS label that begins with a letter, of at most LONGEST_NAME characters."""
    return run_id


def labels(spec: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "launcher", RUN_LABEL: spec.run_id}


def rayjob(spec: JobSpec, backend: KubeRayConfig, runs: str, annotations: Mapping[str, str] | None = None) -> JsonObject:
    """The RayJob. `runs`: the run store as the cluster reaches it; `annotations`: further ones of the RayJob itself."""
    config = spec.config
    of_controller = ["--worker-resource", WORKER_RESOURCE, "--pod-group", POD_GROUP, "--image", backend.image]
    cluster: JsonObject = {
        "rayVersion": spec.versions["ray"],
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 60,
            "resources": AUTOSCALER,
            "securityContext": _RESTRICTED,
        },
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _template(spec, head_pod(spec, backend, head_container(config, backend)), _STAYS),
        },
        "workerGroupSpecs": [
            {
                "groupName": POD_GROUP,
                # KubeRay submits the job when all replicas are up: at the minimum, whatever is free beyond it.
                "replicas": config.workers.min,
                "minReplicas": config.workers.min,
                "maxReplicas": config.workers.max,
                "rayStartParams": {"num-gpus": str(config.gpu or 0), "resources": f'"{{\\"{WORKER_RESOURCE}\\": 1}}"'},
                "template": merge(_template(spec, _worker_pod(spec, backend)), as_json(backend.overlay, KEY)),
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": object_name(spec.run_id),
            "labels": {**labels(spec)},
            "annotations": {"launcher/name": spec.name, "launcher/runs": runs, **(annotations or {})},
        },
        "spec": {
            "entrypoint": supervisor_command(runs, spec.run_id, *of_controller),
            "jobId": spec.run_id,
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": cluster,
        },
    }


def companions(spec: JobSpec, owner: JsonObject) -> list[JsonObject]:
    """The objects that are deleted together with the RayJob: the account of its pods with its rights, and the budget that guards drains.

    `owner`: the reference to the RayJob.
    """
    name = object_name(spec.run_id)
    metadata: JsonObject = {"name": name, "labels": {**labels(spec)}, "ownerReferences": [owner]}
    account: JsonObject = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    rules: list[Json] = [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "resourceNames": [name], "verbs": ["get", "patch"]},
    ]
    role: JsonObject = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    binding: JsonObject = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name}],
    }
    budget: JsonObject = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        # A pod that is not ready is not counted, so it must not keep its node from being drained.
        "spec": {"minAvailable": spec.config.workers.min, "selector": _workers_of(spec), "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }
    return [account, role, binding, budget]


def head_container(config: JobConfig, backend: KubeRayConfig) -> JsonObject:
    """The container of a head, with the secrets of the job: the controller hands them to its workers."""
    resources: JsonObject = {"cpu": backend.head_cpu, "memory": backend.head_memory}
    container = _container(backend, "ray-head", resources, {_DRAIN: "0"}, _secrets(config))
    if backend.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": backend.secret}}]
    return container


def head_pod(spec: JobSpec, backend: KubeRayConfig, container: JsonObject) -> JsonObject:
    """The specification of a head's pod; `container`: what runs in it."""
    return _pod(spec, backend, container, HEAD_TERMINATION_S)


def _worker_container(spec: JobSpec, backend: KubeRayConfig) -> JsonObject:
    config = spec.config
    resources: JsonObject = {"cpu": backend.cpu, "memory": backend.memory}
    if config.gpu:
        resources[backend.gpu_resource] = str(config.gpu)
    drain_s = f"{config.elastic.drain_s:g}"
    container = _container(backend, WORKER, resources, {_DRAIN: drain_s, "LAUNCHER_WORKERS": WORKERS_FOLDER})
    leave: list[Json] = ["python", "-m", "launcher.runtime.pod.prestop", WORKERS_FOLDER, drain_s]
    container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
    return container


def _worker_pod(spec: JobSpec, backend: KubeRayConfig) -> JsonObject:
    termination_s = math.ceil(spec.config.elastic.drain_s) + TERMINATION_MARGIN_S
    return {
        **_pod(spec, backend, _worker_container(spec, backend), termination_s),
        # A worker runs the user's code, so it does not get the rights over the cluster that the controller on the head needs.
        "automountServiceAccountToken": False,
        "nodeSelector": {**backend.node_selector},
        "tolerations": as_json(backend.tolerations, "backend.tolerations"),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": _workers_of(spec),
            }
        ],
    }


def _workers_of(spec: JobSpec) -> JsonObject:
    """Selects the worker pods of a run."""
    return {"matchLabels": {RUN_LABEL: spec.run_id, "ray.io/node-type": "worker"}}


def _template(spec: JobSpec, pod: JsonObject, annotations: Mapping[str, str] | None = None) -> JsonObject:
    metadata: JsonObject = {"labels": {**labels(spec)}}
    if annotations is not None:
        metadata["annotations"] = {**annotations}
    return {"metadata": metadata, "spec": pod}


def _pod(spec: JobSpec, backend: KubeRayConfig, container: JsonObject, termination_s: int) -> JsonObject:
    pod: JsonObject = {
        "serviceAccountName": object_name(spec.run_id),
        "terminationGracePeriodSeconds": termination_s,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if backend.priority_class is not None:
        pod["priorityClassName"] = backend.priority_class
    return pod


def _secrets(config: JobConfig) -> list[Json]:
    """The variables whose values Secrets of their own have; the keys of `backend.secret` are all there already."""
    found: list[Json] = []
    for name, reference in references(config).items():
        if "/" in reference:
            secret, _, key = reference.partition("/")
            found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def _container(
    backend: KubeRayConfig, name: str, resources: JsonObject, env: Mapping[str, str], secrets: Sequence[Json] = ()
) -> JsonObject:
    """`resources` are both what the container requests and its limits; `secrets`: further variables."""
    variables: list[Json] = [{"name": variable, "value": value} for variable, value in {"RAY_USAGE_STATS_ENABLED": "0", **env}.items()]
    return {
        "name": name,
        "image": backend.image,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _RESTRICTED,
        "env": [*variables, *secrets],
    }
