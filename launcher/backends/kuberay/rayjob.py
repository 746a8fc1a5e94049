"""A job as Kubernetes objects: the RayJob, and what it needs beside it. Pure: a JobSpec in, documents out.

The Ray cluster has a head, which carries the supervisor and the controller and no worker, and one group of worker pods, one worker each.
It begins with `workers.min` pods. The controller keeps offering workers up to the wanted number, and Ray's autoscaler brings a pod for each.

References: RayJob and RayCluster of ray.io/v1 (KubeRay 1.6); the restricted profile of Kubernetes' Pod Security Standards.
"""

from __future__ import annotations

import math
from typing import Any

from launcher.backends.kuberay.pod_overlay import WORKER, merge
from launcher.backends.supervisor_command import STATE_FOLDER, supervisor_command
from launcher.config.schema import KubeRayConfig
from launcher.jobspec.job import JobSpec

Document = dict[str, Any]
"""Of Kubernetes, as JSON."""
RUN_LABEL = "launcher/run"
POD_GROUP = "workers"
WORKER_RESOURCE = "launcher_worker"
"""Each worker pod has one of it and each worker takes one, so that Ray asks for a pod for every worker, with or without a GPU."""
WORKERS_FOLDER = f"{STATE_FOLDER}/workers"
TERMINATION_MARGIN_S = 30
"""Between the end of a drain and the kill: time to upload a checkpoint's part and to end."""
HEAD_TERMINATION_S = 10
"""From a head's SIGTERM to its kill. All of it passes, because the autoscaler beside Ray does not heed SIGTERM, and the next head
starts only when this one is gone. Nothing is drained on a head: no worker is there, and what the controller knows is in the run store."""
AUTOSCALER = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}
USER = 1000
LONGEST_NAME = 47
"""Of a RayJob, so that the names that KubeRay derives from it fit."""
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""How long `ray start --block` announces that its node goes, after SIGTERM, before it ends Ray's processes; 0: not at all."""
_RESTRICTED: Document = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def object_name(run_id: str) -> str:
    """Of everything that belongs to a run; a run's id is a DNS label that begins with a letter, of at most LONGEST_NAME."""
    return run_id


def labels(spec: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "launcher", RUN_LABEL: spec.run_id}


def rayjob(spec: JobSpec, backend: KubeRayConfig, runs: str) -> Document:
    """`runs`: where the cluster finds the run store."""
    config = spec.config
    of_controller = ["--worker-resource", WORKER_RESOURCE, "--pod-group", POD_GROUP, "--image", backend.image]
    cluster: Document = {
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
            "template": _head(spec, backend),
        },
        "workerGroupSpecs": [
            {
                "groupName": POD_GROUP,
                # KubeRay submits the job when all replicas are up: at the minimum, whatever is free beyond it.
                "replicas": config.workers.min,
                "minReplicas": config.workers.min,
                "maxReplicas": config.workers.max,
                "rayStartParams": {"num-gpus": str(config.gpu or 0), "resources": f'"{{\\"{WORKER_RESOURCE}\\": 1}}"'},
                "template": merge(_worker(spec, backend), backend.overlay),
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": object_name(spec.run_id),
            "labels": labels(spec),
            "annotations": {"launcher/name": spec.name, "launcher/runs": runs},
        },
        "spec": {
            "entrypoint": supervisor_command(runs, spec.run_id, *of_controller),
            "jobId": spec.run_id,
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": cluster,
        },
    }


def companions(spec: JobSpec, owner: Document) -> list[Document]:
    """What belongs to a RayJob and goes with it (`owner` refers to it): the pods' account with its rights, and what guards a drain."""
    name = object_name(spec.run_id)
    metadata: Document = {"name": name, "labels": labels(spec), "ownerReferences": [owner]}
    account: Document = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "resourceNames": [name], "verbs": ["get", "patch"]},
    ]
    role: Document = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    binding: Document = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name}],
    }
    selector = {"matchLabels": {RUN_LABEL: spec.run_id, "ray.io/node-type": "worker"}}
    budget: Document = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        # A pod that is not ready guards nothing, and would keep its node from being drained.
        "spec": {"minAvailable": spec.config.workers.min, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }
    return [account, role, binding, budget]


def _head(spec: JobSpec, backend: KubeRayConfig) -> Document:
    resources = {"cpu": backend.head_cpu, "memory": backend.head_memory}
    container = _container(backend, "ray-head", {"requests": resources, "limits": resources})
    if backend.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": backend.secret}}]
    container["env"].append({"name": _DRAIN, "value": "0"})
    template = _pod(spec, backend, container, HEAD_TERMINATION_S)
    # Whoever loses the head starts again from the last checkpoint: nobody may move it without need.
    template["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    return template


def _worker(spec: JobSpec, backend: KubeRayConfig) -> Document:
    config = spec.config
    resources = {"cpu": backend.cpu, "memory": backend.memory}
    if config.gpu:
        resources[backend.gpu_resource] = str(config.gpu)
    container = _container(backend, WORKER, {"requests": resources, "limits": resources})
    drain_s = spec.config.elastic.drain_s
    leave = ["python", "-m", "launcher.runtime.pod.prestop", WORKERS_FOLDER, f"{drain_s:g}"]
    container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
    container["env"] += [{"name": _DRAIN, "value": f"{drain_s:g}"}, {"name": "LAUNCHER_WORKERS", "value": WORKERS_FOLDER}]
    template = _pod(spec, backend, container, math.ceil(drain_s) + TERMINATION_MARGIN_S)
    pod = template["spec"]
    # A worker runs the user's code: it is not given the rights over the cluster that the controller on the head needs.
    pod["automountServiceAccountToken"] = False
    pod["nodeSelector"] = dict(backend.node_selector)
    pod["tolerations"] = list(backend.tolerations)
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {RUN_LABEL: spec.run_id, "ray.io/node-type": "worker"}},
        }
    ]
    return template


def _pod(spec: JobSpec, backend: KubeRayConfig, container: Document, termination_s: int) -> Document:
    pod: Document = {
        "serviceAccountName": object_name(spec.run_id),
        "terminationGracePeriodSeconds": termination_s,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if backend.priority_class is not None:
        pod["priorityClassName"] = backend.priority_class
    return {"metadata": {"labels": labels(spec)}, "spec": pod}


def _container(backend: KubeRayConfig, name: str, resources: Document) -> Document:
    return {
        "name": name,
        "image": backend.image,
        "resources": resources,
        "securityContext": _RESTRICTED,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
    }
