"""`launch doctor` on a real cluster: healthy, and with one thing wrong at a time."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import TestCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def doctor(cluster: TestCluster, folder: Path, *words: str, code: int, **environment: str) -> dict[str, Any]:
    """What was found, by name; `words` replace those of the cluster's own with the same key."""
    given = {word.partition("=")[0] for word in words}
    own = [word for word in (*cluster.words, f"runs={cluster.runs}/doctor-test") if word.partition("=")[0] not in given]
    command = [sys.executable, "-m", "launcher", "doctor", *own, *words, "-o", "json"]
    environment = {**os.environ, **cluster.environment, **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def failed(found: dict[str, Any]) -> list[str]:
    return [name for name, finding in found.items() if finding["result"] == "failed"]


@pytest.fixture
def stranger(cluster: TestCluster, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of an account that may nothing."""
    name = f"stranger-{secrets.token_hex(4)}"
    cluster.kubectl("create", "serviceaccount", name)
    try:
        token = cluster.kubectl("create", "token", name).strip()
        document: Any = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        document["users"] = [{"name": document["users"][0]["name"], "user": {"token": token}}]
        path = tmp_path / "stranger"
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        yield path
    finally:
        cluster.kubectl("delete", "serviceaccount", name)


def test_a_healthy_cluster_passes_and_no_pod_stays(cluster: TestCluster, tmp_path: Path) -> None:
    found = doctor(cluster, tmp_path, code=0)
    assert failed(found) == []
    for name in ("cluster", "rights", "KubeRay", "GPUs", "secret", "pod", "run store from a pod", "run store from here"):
        assert found[name]["result"] == "ok", found[name]
    assert cluster.kubectl("get", "pods", "-l", "launcher/check=doctor", "-o", "name") == ""


def test_an_image_that_cannot_be_pulled_is_named(cluster: TestCluster, tmp_path: Path) -> None:
    found = doctor(cluster, tmp_path, "backend.image=registry.invalid/launcher:none", code=2)
    assert failed(found) == ["pod"]
    assert "registry.invalid/launcher:none" in found["pod"]["found"]


def test_a_secret_that_is_not_there_is_named_and_the_image_tried_all_the_same(cluster: TestCluster, tmp_path: Path) -> None:
    found = doctor(cluster, tmp_path, "backend.secret=nothing", code=2)
    assert failed(found) == ["secret"]
    assert found["pod"]["result"] == "ok"


def test_a_store_that_pods_do_not_reach_is_told_from_one_that_is_reached_from_here(cluster: TestCluster, tmp_path: Path) -> None:
    found = doctor(cluster, tmp_path, "backend.secret=null", code=4)
    assert failed(found) == ["run store from a pod"]


def test_an_account_without_rights_learns_which(cluster: TestCluster, tmp_path: Path, stranger: Path) -> None:
    found = doctor(cluster, tmp_path, code=4, KUBECONFIG=str(stranger))
    assert failed(found) == ["rights"]
    assert "create,get,list,delete rayjobs.ray.io" in found["rights"]["found"]


def test_places_that_do_not_exist_are_mistakes(cluster: TestCluster, tmp_path: Path) -> None:
    assert failed(doctor(cluster, tmp_path, "backend.context=nowhere", code=2)) == ["cluster"]
    assert failed(doctor(cluster, tmp_path, "backend.namespace=nowhere", code=2)) == ["namespace"]
