"""The overlay adds to the pods of the workers and takes nothing away that launcher needs."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.backends.kuberay.pod_overlay import WORKER, as_json, check_overlay, merge
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.unit
GPU = "nvidia.com/gpu"
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"launcher/run": "a"}},
    "spec": {
        "tolerations": [{"key": "a"}],
        "nodeSelector": {"a": "b"},
        "containers": [{"name": WORKER, "image": "launcher", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}],
    },
}


def overlaid(spec: Any) -> Any:
    check_overlay({"spec": spec}, GPU)
    return merge(TEMPLATE, {"spec": spec})["spec"]


def test_a_sidecar_stands_beside_the_worker() -> None:
    sidecar = {"name": "exporter", "image": "exporter:1"}
    worker = TEMPLATE["spec"]["containers"][0]
    assert overlaid({"containers": [sidecar]})["containers"] == [worker, sidecar]
    assert overlaid({"containers": [sidecar, {"name": WORKER, "tty": True}]})["containers"] == [{**worker, "tty": True}, sidecar]


def test_variables_and_volumes_are_added_and_changed_by_their_names() -> None:
    change = {
        "name": WORKER,
        "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }
    pod = overlaid({"containers": [change], "volumes": [{"name": "v", "emptyDir": {}}]})
    (container,) = pod["containers"]
    assert [(each["name"], each["value"]) for each in container["env"]] == [("A", "1"), ("B", "3"), ("C", "4")]
    assert (container["image"], container["volumeMounts"]) == ("launcher", [{"name": "v", "mountPath": "/v"}])
    assert pod["volumes"] == [{"name": "v", "emptyDir": {}}]


def test_other_lists_replace_and_null_removes() -> None:
    pod = overlaid({"tolerations": [{"key": "b"}], "nodeSelector": {"a": None, "c": "d"}})
    assert (pod["tolerations"], pod["nodeSelector"]) == ([{"key": "b"}], {"c": "d"})
    assert "tolerations" not in overlaid({"tolerations": None})


def test_the_template_stays_as_it_was() -> None:
    before = repr(TEMPLATE)
    overlaid({"containers": [{"name": WORKER, "env": [{"name": "A", "value": "9"}]}]})
    assert repr(TEMPLATE) == before


def test_labels_may_be_called_like_lists() -> None:
    overlay = {"metadata": {"labels": {"env": "prod"}}, "spec": {"nodeSelector": {"containers": "kata"}}}
    check_overlay(overlay, GPU)
    assert merge(TEMPLATE, overlay)["metadata"]["labels"] == {"launcher/run": "a", "env": "prod"}


def test_what_launcher_leaves_free_may_be_set() -> None:
    worker = {"name": WORKER, "resources": {"limits": {"rdma/hca": "1"}}, "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
    check_overlay(
        {"spec": {"serviceAccountName": "reader", "hostNetwork": True, "runtimeClassName": "nvidia", "containers": [worker]}}, GPU
    )


@pytest.mark.parametrize(
    ("overlay", "where"),
    [
        ({"spce": {}}, "spce"),
        ({"containers": []}, "containers"),
        ({"spec": None}, "spec"),
        ({"spec": []}, "spec"),
        ({"metadata": {"name": "a"}}, "metadata.name"),
        ({"metadata": {"labels": None}}, "metadata.labels"),
        ({"metadata": {"labels": {"launcher/run": None}}}, "metadata.labels.launcher/run"),
        ({"metadata": {"labels": {"ray.io/cluster": "a"}}}, "metadata.labels.ray.io/cluster"),
        ({"metadata": {"annotations": {"a": True}}}, "metadata.annotations.a"),
        ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy"),
        ({"spec": {"terminationGracePeriodSeconds": 5}}, "spec.terminationGracePeriodSeconds"),
        ({"spec": {"priorityClassName": "high"}}, "spec.priorityClassName"),
        ({"spec": {"containers": None}}, "spec.containers"),
        ({"spec": {"containers": {"name": "a"}}}, "spec.containers"),
        ({"spec": {"containers": ["a"]}}, "spec.containers.0"),
        ({"spec": {"containers": [{"image": "a"}]}}, "spec.containers.0"),
        ({"spec": {"containers": [{"name": "worker", "tty": True}]}}, "spec.containers.0.image"),
        ({"spec": {"containers": [{"name": WORKER}, {"name": WORKER}]}}, "spec.containers.1"),
        ({"spec": {"containers": [{"name": WORKER, "image": None}]}}, "spec.containers.0.image"),
        ({"spec": {"containers": [{"name": WORKER, "env": None}]}}, "spec.containers.0.env"),
        ({"spec": {"containers": [{"name": WORKER, "env": [{"value": "a"}]}]}}, "spec.containers.0.env.0"),
        ({"spec": {"containers": [{"name": WORKER, "env": [{"name": "LAUNCHER_WORKERS"}]}]}}, "spec.containers.0.env.0"),
        ({"spec": {"containers": [{"name": WORKER, "lifecycle": None}]}}, "spec.containers.0.lifecycle"),
        ({"spec": {"containers": [{"name": WORKER, "resources": None}]}}, "spec.containers.0.resources"),
        ({"spec": {"containers": [{"name": WORKER, "resources": {"limits": None}}]}}, "spec.containers.0.resources.limits"),
        ({"spec": {"containers": [{"name": WORKER, "resources": {"limits": {GPU: "2"}}}]}}, f"spec.containers.0.resources.limits.{GPU}"),
        ({"spec": {"volumes": [{"emptyDir": {}}]}}, "spec.volumes.0"),
    ],
)
def test_what_is_no_pod_template_or_takes_away_is_refused(overlay: Any, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overlay(overlay, GPU)
    assert caught.value.where == f"backend.overlay.{where}"


def test_a_value_that_no_document_can_hold_is_named() -> None:
    assert as_json({"a": (1, None, {"b": True})}, "backend.overlay") == {"a": [1, None, {"b": True}]}
    with pytest.raises(ConfigError) as caught:
        check_overlay({"spec": {"volumes": [{"name": "a", "emptyDir": {1, 2}}]}}, GPU)
    assert caught.value.where == "backend.overlay.spec.volumes.0.emptyDir"
