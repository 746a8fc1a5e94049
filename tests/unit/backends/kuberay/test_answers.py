"""What an API server answers is read as Kubernetes reads it."""

from __future__ import annotations

import msgspec
import pytest

from launcher.backends.kuberay.answers import AccessReview, Items, Node, Pod, RayJob, Schema, parse

pytestmark = pytest.mark.unit


def test_null_and_missing_are_the_same() -> None:
    assert parse({"metadata": None, "status": None}, RayJob) == parse({}, RayJob) == RayJob()
    assert parse({"items": None}, Items[Pod]).items == ()
    assert not parse({"status": {}}, RayJob).taken_up
    assert parse({"status": {"jobDeploymentStatus": "Running"}}, RayJob).taken_up


def test_fields_that_nobody_looks_at_are_left_out() -> None:
    (node,) = parse({"items": [{"status": {"allocatable": {"nvidia.com/gpu": "4"}, "images": []}}]}, Items[Node]).items
    assert node.status.allocatable == {"nvidia.com/gpu": "4"}
    assert not node.spec.unschedulable


def test_an_answer_of_another_form_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        parse({"status": {"allowed": "yes"}}, AccessReview)
    with pytest.raises(msgspec.ValidationError):
        parse([], RayJob)


def test_a_schema_knows_the_fields_on_its_paths() -> None:
    schema = parse({"properties": {"spec": {"properties": {"mode": {"type": "string"}}}}}, Schema)
    assert schema.has("spec", "mode")
    assert not schema.has("spec", "mode", "deeper")
    assert not schema.has("status")
