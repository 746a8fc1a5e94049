"""A cluster that only answers, and what `launch doctor` finds on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.backends.base import Finding, Result
from launcher.backends.kuberay import checks
from launcher.backends.kuberay.answers import Definition, Deployment, Event, Pod, parse
from launcher.backends.kuberay.kubernetes_api import Forbidden
from launcher.backends.kuberay.probe_pod import PROBE_S
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import ManualClock
from launcher.core.types import JsonObject
from launcher.jobspec.versions import installed_versions
from tests.unit.training.small_jobs import job

RUNS = "s3://bucket/runs"
Look = dict[str, Any]
"""A pod as the API server shows it once."""


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


def ended(phase: str, **state: Any) -> Look:
    return {"status": {"phase": phase, "containerStatuses": [{"state": {"terminated": state}}]}}


def waiting(reason: str, message: str = "") -> Look:
    return {"status": {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}}


def answer(problem: str = "", **versions: str) -> Look:
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
    looks: list[Look] = field(default_factory=lambda: [{"status": {"phase": "Pending"}}, answer()])
    """The pod as it is seen each time; the last stays."""
    refused: str = ""
    create_error: Exception | None = None
    delete_error: Exception | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    created: list[JsonObject] = field(default_factory=list)
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

    def definition(self, name: str) -> Definition:
        self._may("definition")
        return parse(self.crd, Definition)

    def operators(self) -> list[Deployment]:
        self._may("operators")
        return [parse(deployment, Deployment) for deployment in self.deployments]

    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None:
        return None if "gpus_of_nodes" in self.forbidden else self.nodes

    def secret_exists(self, name: str) -> bool:
        self._may("secret_exists")
        return name in self.secrets

    def refusal(self, document: JsonObject) -> str:
        return self.refused

    def create_pod(self, document: JsonObject) -> None:
        if self.create_error is not None:
            raise self.create_error
        self.created.append(document)

    def find_pod(self, name: str) -> Pod | None:
        return parse(self.looks.pop(0) if len(self.looks) > 1 else self.looks[0], Pod)

    def delete_pod(self, name: str) -> None:
        self.deleted.append(name)
        if self.delete_error is not None:
            raise self.delete_error

    def pod_events(self, name: str) -> tuple[Event, ...]:
        return tuple(parse(event, Event) for event in self.events)


def examined(api: FakeApi, given: JobConfig | None = None) -> dict[str, Finding]:
    clock = ManualClock()
    found = list(checks.examine(given or config(), open_api=lambda backend: api, clock=clock))
    assert clock.monotonic() <= PROBE_S + 1
    assert [pod["metadata"]["name"] for pod in api.created] == api.deleted or api.create_error is not None
    return {finding.name: finding for finding in found}


def bad(found: dict[str, Finding]) -> dict[str, Result]:
    return {name: finding.result for name, finding in found.items() if finding.result is not Result.OK}
