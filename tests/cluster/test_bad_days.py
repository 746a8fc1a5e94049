"""What goes wrong around a job on a cluster: a clear error that leaves nothing behind, or a wait that says what it waits for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import ClusterProject, TestCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def namespace(cluster: TestCluster, tmp_path: Path) -> Iterator[str]:
    """One of its own, with the Secret that opens the store."""
    name = "".join(letter for letter in tmp_path.name.lower().replace("_", "-") if letter.isalnum() or letter == "-")[-40:].strip(
        "-0123456789"
    )
    cluster.kubectl("create", "namespace", name)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": cluster.secret}, "stringData": cluster.store}))
    cluster.kubectl("apply", "-n", name, "-f", str(secret))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def pending_because(project: ClusterProject, run: str, words: str) -> Any:
    def condition(status: Any) -> bool:
        return status["state"] == "PENDING" and words in status["reason"]

    return project.wait_for(run, condition)


def nothing_is_left(project: ClusterProject, cluster: TestCluster) -> bool:
    made: Any = json.loads(cluster.kubectl("get", "rayjobs", "-A", "-o", "json"))["items"]
    ours = [job for job in made if job["metadata"].get("annotations", {}).get("launcher/runs") == project.runs]
    return project.json("ls", "--runs", project.runs) == [] and not ours


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["backend.context=nowhere"], 4, "nowhere"),
        (["backend.namespace=nowhere"], 4, "nowhere"),
        (["workers=3..4", "gpu=3"], 4, "the nodes have room for 2"),
        (["runs=./here"], 2, "s3://bucket/prefix"),
    ],
)
def test_a_submit_that_cannot_work_is_refused_and_leaves_nothing(
    project: ClusterProject, cluster: TestCluster, words: list[str], code: int, said: str
) -> None:
    refused = project.launch("train", "-d", *project.job("workers=1", *words), check=code)
    assert said in refused.stderr
    assert "next:" in refused.stderr or "expected:" in refused.stderr
    assert nothing_is_left(project, cluster)


def test_an_account_without_rights_is_told_so(project: ClusterProject, cluster: TestCluster, namespace: str, tmp_path: Path) -> None:
    cluster.kubectl("create", "serviceaccount", "guest", "-n", namespace)
    token = cluster.kubectl("create", "token", "guest", "-n", namespace).strip()
    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    (tmp_path / "guest").write_text(json.dumps(config))
    project.environment = {**project.environment, "KUBECONFIG": str(tmp_path / "guest")}
    refused = project.launch("train", "-d", *project.job("workers=1", f"backend.namespace={namespace}"), check=4)
    assert "does not let this account" in refused.stderr
    assert "system:serviceaccount" in refused.stderr
    assert token not in refused.stderr
    assert project.json("ls", "--runs", project.runs) == []


def test_an_expired_token_is_told_so(project: ClusterProject, cluster: TestCluster, tmp_path: Path) -> None:
    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"][0]["user"] = {"token": base64.b64encode(b"over").decode()}
    (tmp_path / "expired").write_text(json.dumps(config))
    project.environment = {**project.environment, "KUBECONFIG": str(tmp_path / "expired")}
    refused = project.launch("train", "-d", *project.job("workers=1"), check=4)
    assert "Unauthorized" in refused.stderr


def test_a_queued_job_says_what_it_waits_for_and_can_be_stopped(project: ClusterProject, cluster: TestCluster) -> None:
    image = project.submit("workers=1", "backend.image=registry.invalid/launcher:none")["run_id"]
    pending_because(project, image, "registry.invalid")
    room = project.submit("workers=1", "backend.cpu=64")["run_id"]
    pending_because(project, room, "Insufficient cpu")
    for run in (image, room):
        ended = project.json("stop", run, "--runs", project.runs)
        assert ended["state"] == "STOPPED"
        assert run not in cluster.kubectl("get", "rayjobs", "-o", "name")


def test_a_quota_is_what_a_job_waits_for(project: ClusterProject, cluster: TestCluster, namespace: str) -> None:
    cluster.kubectl("create", "quota", "small", "-n", namespace, "--hard=pods=0")
    run = project.submit("workers=1", f"backend.namespace={namespace}")["run_id"]
    pending_because(project, run, "exceeded quota")
    assert project.json("stop", run, "--runs", project.runs)["state"] == "STOPPED"


def test_a_store_that_the_cluster_cannot_reach_fails_the_job_in_words(
    project: ClusterProject, cluster: TestCluster, namespace: str
) -> None:
    wrong = {**cluster.store, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    patch = json.dumps({"stringData": wrong})
    cluster.kubectl("patch", "secret", cluster.secret, "-n", namespace, "-p", patch)
    run = project.submit("workers=1", f"backend.namespace={namespace}")["run_id"]
    ended = project.wait_for_end(run)
    assert ended["state"] == "FAILED"
    assert "run store" in ended["reason"]


def test_a_job_waits_for_an_operator_and_trains_while_the_api_server_is_away(
    project: ClusterProject, cluster: TestCluster, own_cluster: Cluster
) -> None:
    with own_cluster.without("kuberay-operator"):
        run = project.submit("workers=1", "trainer.steps=100000")["run_id"]
        pending_because(project, run, "operator")
    before = project.wait_for(run, trains)
    with own_cluster.without("apiserver"):
        after = project.wait_for(run, lambda status: trains(status) and status["step"] > before["step"] + 20)
        refused = project.launch("train", "-d", *project.job("workers=1"), check=4)
        assert "does not answer" in refused.stderr
    assert after["steps_lost"] == 0
    assert project.json("stop", run, "--runs", project.runs)["state"] == "STOPPED"


def trains(status: Any) -> bool:
    return bool(status["state"] == "RUNNING" and status["step"] > 0)
