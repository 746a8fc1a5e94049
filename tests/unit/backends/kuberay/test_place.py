"""Whether a job can be placed on a cluster: what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException

from launcher.backends.kuberay import backend as kuberay
from launcher.backends.kuberay.job_api import JobApi
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import ConfigError
from launcher.jobspec.job import JobSpec
from launcher.record.desired import WorkerBounds
from tests.unit.backends import golden

pytestmark = pytest.mark.unit


class FakeCustomObjects:
    """Answers as an API server that has this to say."""

    def __init__(self, status: int = 201, message: str = "") -> None:
        self.status, self.message = status, message
        self.created: list[Any] = []

    def create_namespaced_custom_object(self, *arguments: Any, dry_run: str, field_validation: str, **options: Any) -> SimpleNamespace:
        assert (dry_run, field_validation) == ("All", "Strict")
        self.created.append(arguments[-1])
        if self.status >= 400:
            error = ApiException(status=self.status)
            error.body = json.dumps({"message": self.message})
            raise error
        return SimpleNamespace(data=json.dumps(arguments[-1]))


class FakeApi(JobApi):
    answers = FakeCustomObjects()

    def __init__(self, backend: KubeRayConfig) -> None:
        self.namespace, self.server, self.context = backend.namespace or "default", "https://cluster", "test"
        self._custom = self.answers

    def check(self) -> None:
        pass

    def gpus_of_nodes(self, resource: str, selector: Mapping[str, str]) -> list[int] | None:
        return {"nvidia.com/gpu": [2, 1]}.get(resource, [0, 0])


def place(monkeypatch: pytest.MonkeyPatch, spec: JobSpec, answers: FakeCustomObjects | None = None) -> kuberay.Placement:
    monkeypatch.setattr(FakeApi, "answers", answers or FakeCustomObjects())
    monkeypatch.setattr(kuberay, "JobApi", FakeApi)
    return kuberay.KubeRayBackend().place(spec)


def test_the_cluster_is_asked_about_the_very_document(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, answers = golden.specs()["everything"], FakeCustomObjects()
    place(monkeypatch, spec, answers)
    assert answers.created == golden.documents(spec)[:1]


def test_a_field_that_the_cluster_does_not_know_is_refused_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    message = 'unknown field "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.hostNetwrok"'
    spec = golden.spec(KubeRayConfig(image="launcher", overlay={"spec": {"hostNetwrok": True}}))
    with pytest.raises(ConfigError) as caught:
        place(monkeypatch, spec, FakeCustomObjects(400, message))
    assert (caught.value.where, caught.value.given) == ("backend.overlay", message)


def test_an_operator_too_old_for_the_document_is_looked_at_by_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        place(monkeypatch, golden.specs()["gpu"], FakeCustomObjects(400, 'unknown field "spec.rayClusterSpec.authOptions"'))
    assert caught.value.where == "backend"
    assert "launch doctor" in caught.value.next


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (409, "rayjobs.ray.io mlp-abcdef already exists"),  # that of an attempt that ended: a resume puts another in its place
        (403, "rayjobs.ray.io is forbidden: exceeded quota"),  # the create itself says so
        (400, "admission webhook denied the request: it does not support dry run"),
        (500, "etcd is away"),
    ],
)
def test_what_says_nothing_about_the_document_is_left_to_the_create(monkeypatch: pytest.MonkeyPatch, status: int, message: str) -> None:
    assert place(monkeypatch, golden.specs()["gpu"], FakeCustomObjects(status, message)).fits


def test_what_the_nodes_have_bounds_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place(monkeypatch, golden.specs()["gpu"])
    assert (placement.fits, placement.workers, placement.device) == (True, 3, "cuda")
    slices = place(monkeypatch, golden.specs()["mig"])
    assert not slices.fits
    assert "2 workers with 1 nvidia.com/mig-1g.10gb each" in slices.reason
    assert "backend.autoscaled_nodes=true" in slices.reason


def test_a_worker_needs_its_gpus_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = golden.specs()["gpu"]
    wide = replace(spec, config=replace(spec.config, gpu=2, workers=WorkerBounds(min=1, max=3, target=3)))
    assert place(monkeypatch, wide).workers == 1


def test_what_is_there_now_does_not_bound_a_job_where_nodes_come_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = golden.specs()["mig"]
    assert isinstance(spec.config.backend, KubeRayConfig)
    patient = replace(spec, config=replace(spec.config, backend=replace(spec.config.backend, autoscaled_nodes=True)))
    placement = place(monkeypatch, patient)
    assert (placement.fits, placement.workers) == (True, 0)
