"""What is rendered, whole: unchanged where nobody wants a change, and nothing in it that a cluster or the operator refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.backends.kuberay import rayjob
from launcher.backends.kuberay.settings import check_settings
from launcher.config.schema import ElasticConfig, KubeRayConfig
from launcher.jobspec.job import JobSpec
from tests.support.structural_schema import problems
from tests.unit.backends import crds, golden

pytestmark = pytest.mark.unit
SPECS = golden.specs()


@pytest.mark.parametrize("name", SPECS)
def test_the_documents_are_those_that_were_looked_at(name: str) -> None:
    expected = golden.place(name).read_text()
    assert golden.text(SPECS[name]) == expected, "where this is meant: python -m tests.unit.backends.golden, and look at the difference"


@pytest.mark.parametrize("name", SPECS)
def test_the_settings_of_these_jobs_are_accepted(name: str) -> None:
    backend = SPECS[name].config.backend
    assert isinstance(backend, KubeRayConfig)
    check_settings(backend)


@pytest.mark.parametrize("version", crds.VERSIONS)
@pytest.mark.parametrize("name", SPECS)
def test_every_field_is_one_of_this_release_of_kuberay(name: str, version: str) -> None:
    assert refused(SPECS[name], version) == []


@pytest.mark.parametrize("name", SPECS)
def test_the_operator_finds_nothing_invalid(name: str) -> None:
    assert list(operator_refuses(golden.documents(SPECS[name])[0])) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"), "Always"),
        (("spec", "rayClusterSpec", "rayVersion"), ""),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), 5),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "num-gpus"), "0.5"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "resources"), '{"launcher_worker": 1}'),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "resources"), {"GPU": "1"}),
        (("spec", "ttlSecondsAfterFinished"), -1),
        (("metadata", "name"), "3d-abcdef"),
        (("metadata", "name"), "a" * 48),
    ],
)
def test_the_rules_of_the_operator_are_rules(path: tuple[str | int, ...], value: Any) -> None:
    document: Any = golden.documents(SPECS["gpu"])[0]
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert list(operator_refuses(document))


@pytest.mark.parametrize(
    ("field", "value"),
    [("containerz", []), ("hostNetwork", "yes"), ("terminationGracePeriodSeconds", 1.5), ("volumes", [{"name": "a"}, {"name": "a"}])],
)
def test_what_the_schema_does_not_know_is_seen(field: str, value: Any) -> None:
    document: Any = golden.documents(SPECS["gpu"])[0]
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"][field] = value
    (problem,) = problems(document, schema(crds.VERSIONS[0]))
    assert field in problem


@pytest.mark.parametrize("name", SPECS)
def test_every_container_meets_the_restricted_profile(name: str) -> None:
    cluster = golden.documents(SPECS[name])[0]["spec"]["rayClusterSpec"]
    assert confined(cluster["autoscalerOptions"]["securityContext"]), "of the container that the operator adds to the head"
    for template in templates(cluster):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # The operator gives the container that waits for the head what the first container has.
        assert confined(pod["containers"][0]["securityContext"])
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}


def test_a_worker_has_no_rights_over_the_cluster() -> None:
    head, worker = templates(golden.documents(SPECS["gpu"])[0]["spec"]["rayClusterSpec"])
    assert worker["spec"]["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in head["spec"], "the controller and the autoscaler are there"


@pytest.mark.parametrize("drain_s", [0.4, 25.0, 25.6, 3600.0])
def test_a_drain_of_any_length_is_a_drain(drain_s: float) -> None:
    made = golden.spec(KubeRayConfig(image="launcher"), elastic=replace(ElasticConfig(), drain_s=drain_s))
    _, worker = templates(golden.documents(made)[0]["spec"]["rayClusterSpec"])
    # Ray takes 0 for: do not drain.
    assert 0 < drain_of(worker) <= worker["spec"]["terminationGracePeriodSeconds"] - rayjob.TERMINATION_MARGIN_S


def test_a_head_is_gone_soon() -> None:
    head, _ = templates(golden.documents(SPECS["gpu"])[0]["spec"]["rayClusterSpec"])
    assert drain_of(head) == 0
    assert head["spec"]["terminationGracePeriodSeconds"] == rayjob.HEAD_TERMINATION_S


WORDS = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
CPUS = st.one_of(
    st.integers(1, 200).map(str), st.integers(1, 9999).map(lambda number: f"{number}m"), st.sampled_from(("1.5", "0.25", "2."))
)
MEMORY = st.builds(lambda number, unit: f"{number}{unit}", st.integers(1, 512), st.sampled_from(("Gi", "G", "Ti", "e9", "Pi")))
LABELS = st.dictionaries(st.builds(lambda prefix, name: f"{prefix}.io/{name}", WORDS, WORDS), st.one_of(WORDS, st.just("")), max_size=3)
VOLUMES = st.lists(WORDS, max_size=3, unique=True).map(lambda names: [{"name": name, "emptyDir": {}} for name in names])
CONTAINERS = st.lists(WORDS, max_size=3, unique=True).map(
    lambda names: [{"name": name, "image": "busybox", "env": [{"name": "A", "value": "1"}]} for name in ("ray-worker", *names)]
)
OVERLAYS = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"labels": LABELS, "annotations": LABELS}),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "hostNetwork": st.booleans(),
                "nodeSelector": st.one_of(LABELS, st.none()),
                "volumes": VOLUMES,
                "containers": CONTAINERS,
                "tolerations": st.none(),
            },
        ),
    },
)
TOLERATIONS = st.one_of(
    st.builds(lambda key: {"key": key, "operator": "Exists"}, WORDS),
    st.builds(lambda key, value: {"key": key, "value": value, "effect": "NoExecute", "tolerationSeconds": 60}, WORDS, WORDS),
)
BACKENDS = st.builds(
    KubeRayConfig,
    image=st.builds(lambda path, tag: f"registry.io:5000/{path}:{tag}", WORDS, WORDS),
    namespace=st.one_of(st.none(), WORDS),
    secret=st.one_of(st.none(), WORDS),
    priority_class=st.one_of(st.none(), WORDS),
    node_selector=LABELS,
    tolerations=st.lists(TOLERATIONS, max_size=2).map(tuple),
    cpu=CPUS,
    memory=MEMORY,
    head_cpu=CPUS,
    head_memory=MEMORY,
    gpu_resource=st.sampled_from(("nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.me", "amd.com/gpu")),
    overlay=OVERLAYS,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(backend=BACKENDS, gpu=st.one_of(st.none(), st.integers(0, 16)))
def test_whatever_is_accepted_renders_to_what_a_cluster_accepts(backend: KubeRayConfig, gpu: int | None) -> None:
    check_settings(backend)
    made = golden.spec(backend, gpu=gpu)
    for version in crds.VERSIONS:
        assert refused(made, version) == []
    assert list(operator_refuses(golden.documents(made)[0])) == []


def refused(spec: JobSpec, version: str) -> list[str]:
    document = golden.documents(spec)[0]
    assert json.loads(json.dumps(document)) == document, "it is plain JSON"
    return problems(document, schema(version))


schema = cache(crds.rayjob_schema)


def templates(cluster: Any) -> list[Any]:
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def drain_of(template: Any) -> float:
    (value,) = (
        each["value"] for each in template["spec"]["containers"][0]["env"] if each["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    )
    return float(value)


def confined(context: Any) -> bool:
    return context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}


def operator_refuses(document: Any) -> Iterator[str]:
    """What KubeRay checks itself (ValidateRayJobMetadata, ValidateRayJobSpec) and Ray's autoscaler needs, of the fields that are used here."""
    name, spec = document["metadata"]["name"], document["spec"]
    cluster = spec["rayClusterSpec"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or (spec.get("ttlSecondsAfterFinished") and not spec["shutdownAfterJobFinishes"]):
        yield "ttlSecondsAfterFinished"
    if spec["submissionMode"] not in ("HTTPMode", "K8sJobMode") or spec.get("backoffLimit", 0) < 0:
        yield "submission"
    if cluster["authOptions"]["mode"] == "token" and tuple(map(int, (cluster["rayVersion"] or "0.0").split(".")[:2])) < (2, 52):
        yield f"tokens with Ray {cluster['rayVersion']}"
    if cluster["autoscalerOptions"]["idleTimeoutSeconds"] < 0:
        yield "idleTimeoutSeconds"
    for key, value in document["metadata"]["labels"].items():
        if not re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9][-\w.]{0,62}", key) or not re.fullmatch(
            r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", value
        ):
            yield f"label {key}={value}"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod, parameters = group["template"]["spec"], group["rayStartParams"]
        if not pod["containers"] or pod["containers"][0]["name"] not in ("ray-head", "ray-worker"):
            yield "Ray is not the first container"
        if cluster["autoscalerOptions"]["version"] == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield "restartPolicy"
        if group.get("resources") or "labels" in parameters:
            yield "resources or labels in two places"
        if not all(isinstance(value, str) for value in parameters.values()):
            yield "rayStartParams are text"
        if not parameters["num-gpus"].isdigit() or not parameters.get("num-cpus", "0").isdigit():
            yield "the autoscaler counts whole CPUs and GPUs"
        try:
            json.loads(json.loads(parameters.get("resources", '"{}"')))  # the shell that starts Ray takes the outer quotes away
        except (TypeError, ValueError):
            yield "resources"
        if {"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"} & {each["name"] for each in pod["containers"][0]["env"]}:
            yield "variables of the operator"
    for group in cluster["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield "replicas"
