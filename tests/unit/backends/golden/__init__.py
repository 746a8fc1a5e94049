"""Documents as they were when somebody last looked at them: a change of what the cluster is asked for shows in a review.

`python -m tests.unit.backends.golden` writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.backends.kuberay import rayjob
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.types import JsonObject, RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.variables import SecretReference, Variables
from tests.unit.training.small_jobs import job

RUNS = "s3://bucket/runs"
OWNER: JsonObject = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "name": "mlp-abcdef",
    "uid": "5f9e4a34-0000-4000-8000-000000000000",
    "blockOwnerDeletion": False,
}
EVERYTHING = KubeRayConfig(
    image="registry.example:5000/team/launcher:1",
    context="training",
    namespace="team",
    secret="launcher-store",
    priority_class="low",
    node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    cpu="7500m",
    memory="64Gi",
    head_cpu="2",
    head_memory="16Gi",
    overlay={
        "metadata": {"labels": {"team": "vision"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "schedulerName": "volcano",
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "images"}}],
            "containers": [
                {
                    "name": "ray-worker",
                    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "resources": {"requests": {"rdma/hca": "1"}, "limits": {"rdma/hca": "1"}},
                },
                {"name": "exporter", "image": "registry.example/exporter:2"},
            ],
        },
    },
)
VARIABLES: Variables = {
    "DATA_ROOT": "/data",
    "HF_TOKEN": SecretReference(secret="hugging-face/token"),
    "MLFLOW_TOKEN": SecretReference(secret="MLFLOW_TOKEN"),
}


def specs() -> Mapping[str, JobSpec]:
    image = KubeRayConfig(image="ghcr.io/team/launcher:1")
    return {
        "gpu": spec(image),
        "cpu": spec(image, gpu=None),
        "mig": spec(replace(image, gpu_resource="nvidia.com/mig-1g.10gb")),
        "everything": spec(EVERYTHING, gpu=8, environment=VARIABLES),
    }


def spec(backend: KubeRayConfig, run_id: str = "mlp-abcdef", **changes: Any) -> JobSpec:
    return JobSpec(
        run_id=RunId(run_id),
        name="digits",
        config=config(backend, **changes),
        code=CodeRef(digest="0" * 64),
        versions={"ray": "2.60.0", "python": "3.11.7"},
        submitted_at="2026-11-24T12:00:00Z",
    )


def config(backend: KubeRayConfig, *, workers: str = "2..4", **changes: Any) -> JobConfig:
    made = job({"_target_": "models.mlp.MLP", "features": 64, "classes": 3}, workers=workers)
    return replace(made, **{"gpu": 1, "runs": RUNS, "backend": backend, **changes})


def documents(spec: JobSpec) -> list[JsonObject]:
    """All that is created for a job, in this order."""
    assert isinstance(spec.config.backend, KubeRayConfig)
    return [rayjob.rayjob(spec, spec.config.backend, RUNS), *rayjob.companions(spec, OWNER)]


def text(spec: JobSpec) -> str:
    return json.dumps(documents(spec), indent=2) + "\n"


def place(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.json")
