"""The KubeRay operator and the resources that it defines: there, served, and new enough.

The operator often runs in a namespace that the account may not look into. Then the definition of RayJobs tells its age: a field that came
with the oldest version that launcher works with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.backends.base import Finding
from launcher.backends.kuberay.answers import Definition, Deployment
from launcher.backends.kuberay.checks_api import ChecksApi
from launcher.backends.kuberay.kubernetes_api import Forbidden

OLDEST = (1, 6)
"""The oldest version of KubeRay that launcher works with."""
OLDEST_FIELD = ("rayClusterSpec", "authOptions", "enableK8sTokenAuth")
"""The path of a field of a RayJob's spec that came with OLDEST."""
RESOURCES = ("rayjobs", "rayclusters")
INSTALL = "install the operator: helm install kuberay-operator kuberay/kuberay-operator (its documentation: docs.ray.io, KubeRay)"
KUBERAY, OPERATOR = "KubeRay", "KubeRay operator"


def examine_definitions(api: ChecksApi) -> Finding:
    served = api.served()
    lacking = [f"{name}.ray.io" for name in RESOURCES if name not in served]
    if lacking:
        return Finding.failed(KUBERAY, f"the cluster does not serve {' and '.join(lacking)} in v1", INSTALL)
    try:
        return judge_definition(api.definition("rayjobs.ray.io"))
    except Forbidden:
        return Finding.warning(KUBERAY, "rayjobs.ray.io is there; its version is not visible to this account")


def judge_definition(definition: Definition) -> Finding:
    """`definition`: of rayjobs.ray.io."""
    schemas = [version.schema.open_api for version in definition.spec.versions if version.name == "v1" and version.served]
    if not schemas:
        return Finding.failed(KUBERAY, "rayjobs.ray.io is not served in v1", INSTALL)
    if not schemas[0].has("spec", *OLDEST_FIELD):
        return Finding.failed(
            KUBERAY,
            f"rayjobs.ray.io is older than KubeRay {_dotted(OLDEST)}: it has no {'.'.join(OLDEST_FIELD)}",
            "upgrade the operator and its definitions; helm upgrade leaves the definitions as they are: kubectl apply --server-side them",
        )
    return Finding.ok(KUBERAY, f"rayjobs.ray.io is served in v1, of KubeRay {_dotted(OLDEST)} or newer")


def examine_operator(api: ChecksApi) -> Finding:
    try:
        return judge_operators(api.operators())
    except Forbidden:
        return Finding.warning(OPERATOR, "not visible: this account may not list deployments of other namespaces")


def judge_operators(deployments: Sequence[Deployment]) -> Finding:
    if not deployments:
        return Finding.warning(
            OPERATOR,
            "not visible: no deployment is labelled or named kuberay-operator",
            "where none runs, jobs wait for ever: ask whoever runs the cluster",
        )
    operators = [_operator(deployment) for deployment in deployments]
    words = "; ".join(f"{operator.image} in namespace {operator.namespace}" for operator in operators)
    if any(operator.version is not None and operator.version < OLDEST for operator in operators):
        return Finding.failed(OPERATOR, f"older than {_dotted(OLDEST)}: {words}", "upgrade the operator together with its definitions")
    if not any(deployment.status.available_replicas for deployment in deployments):
        return Finding.failed(OPERATOR, f"none of its pods is available: {words}", "kubectl describe the deployment: it says why")
    if any(operator.version is None for operator in operators):
        return Finding.warning(OPERATOR, f"its version is not visible in its image's tag: {words}")
    return Finding.ok(OPERATOR, words)


@dataclass(frozen=True)
class _Operator:
    namespace: str
    image: str
    version: tuple[int, int] | None
    """None where the image's tag tells none."""


def _operator(deployment: Deployment) -> _Operator:
    containers = deployment.spec.template.spec.containers
    image = next((each for each in containers if "operator" in each.name), containers[0]).image
    tag = re.search(r":v?(\d+)\.(\d+)[^/]*$", image.partition("@")[0])
    return _Operator(deployment.metadata.namespace, image, (int(tag[1]), int(tag[2])) if tag else None)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
