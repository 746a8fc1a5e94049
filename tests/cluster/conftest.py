"""One Kubernetes for all tests of this level: the one that cluster.py makes on this machine, or LAUNCHER_KUBECONFIG's.

A cluster of somebody else's needs the operator, and says in LAUNCHER_CLUSTER_IMAGE and LAUNCHER_CLUSTER_RUNS what runs there and where it
is recorded (s3://bucket/prefix, reached with the keys in the environment), in LAUNCHER_CLUSTER_SECRET which Secret holds these keys.
Tests that kill a node or restart a part of the cluster are skipped there.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.binaries import KUBECTL, Unavailable
from tests.cluster.cluster import BUCKET, STORE_SECRET, Cluster, folder
from tests.cluster.images import LAUNCHER
from tests.support.jobs import Project, write_project

SMALL = ("backend.cpu=500m", "backend.memory=2Gi", "backend.head_cpu=500m", "backend.head_memory=3Gi")
"""Two nodes that have the two cores of one machine each hold a head and four workers."""


@dataclass
class TestCluster:
    __test__ = False

    kubeconfig: Path
    image: str
    secret: str
    runs: str
    store: dict[str, str]
    parts: Cluster | None
    """None: it is somebody else's."""

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig), **self.store}

    @property
    def words(self) -> list[str]:
        """Of a job there."""
        where = [f"backend.image={self.image}", f"backend.secret={self.secret}"]
        return ["backend=kuberay", *where, *SMALL, "gpu=1", "resources.device=cpu"]

    def kubectl(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl" if self.parts is None else KUBECTL, f"--kubeconfig={self.kubeconfig}", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def describe(self) -> str:
        """Its pods with what their containers do, its youngest events, and which of its own parts are dead."""
        columns = "NAME:.metadata.name,NODE:.spec.nodeName,PHASE:.status.phase,CONTAINERS:.status.containerStatuses[*].state"
        pods = self.kubectl("get", "pods", "-A", "-o", f"custom-columns={columns}", check=False)
        events = self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False).splitlines()[-15:]
        dead = [] if self.parts is None else self.parts.dead()
        return "\n".join([pods, *events, f"ended by themselves: {', '.join(dead) or 'none'}"])

    def pods(self, run_id: str, kind: str = "worker") -> dict[str, str]:
        """Node of each pod of a run that is not being ended; `kind` is head or worker."""
        listed: Any = json.loads(self.kubectl("get", "pods", "-l", f"launcher/run={run_id},ray.io/node-type={kind}", "-o", "json"))
        living = [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]
        return {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in living}


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    given = os.environ.get("LAUNCHER_KUBECONFIG")
    if given:
        store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        names = ("LAUNCHER_CLUSTER_IMAGE", "LAUNCHER_CLUSTER_SECRET", "LAUNCHER_CLUSTER_RUNS")
        image, secret, runs = (os.environ[name] for name in names)
        yield TestCluster(Path(given), image, secret, runs.rstrip("/"), store, None)
        return
    made = Cluster(folder())
    was_up = made.kubeconfig.exists()
    try:
        made.up()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield TestCluster(made.kubeconfig, LAUNCHER, STORE_SECRET, f"s3://{BUCKET}", made.store_environment, made)
    finally:
        if not was_up:
            made.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed says what its pods were doing: they are gone when somebody reads it."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.when == "call" and report.failed and isinstance(cluster, TestCluster):
        with suppress(subprocess.SubprocessError, OSError):  # the failure itself is what has to be told
            report.sections.append(("the cluster", cluster.describe()))
    return report


@pytest.fixture
def own_cluster(cluster: TestCluster) -> Cluster:
    """The parts of the cluster, for tests that break some of them."""
    if cluster.parts is None:
        pytest.skip("it breaks parts of the cluster, and this one is somebody else's")
    return cluster.parts


class ClusterProject(Project):
    """A user's checkout whose jobs go to the cluster."""

    words: list[str]

    def status(self, run: str) -> Any:
        """By the command: this process never has the cluster's kubeconfig."""
        return self.json("status", run, "--runs", self.runs)

    def events(self, run: str) -> list[Any]:
        return [json.loads(line) for line in self.launch("events", run, "--runs", self.runs, "-o", "json").stdout.splitlines()]

    def job(self, *overrides: str) -> list[str]:
        given = {word.partition("=")[0] for word in overrides}
        return super().job(*(word for word in self.words if word.partition("=")[0] not in given), *overrides)


@pytest.fixture
def project(cluster: TestCluster, tmp_path: Path) -> Iterator[ClusterProject]:
    write_project(tmp_path / "project")
    made = ClusterProject(tmp_path / "project", tmp_path / "ray", f"{cluster.runs}/{tmp_path.name}-{os.getpid()}", cluster.environment)
    made.words = cluster.words
    yield made
    listed: Any = json.loads(cluster.kubectl("get", "rayjobs", "-l", "app.kubernetes.io/managed-by=launcher", "-o", "json"))
    ours = [job["metadata"]["name"] for job in listed["items"] if job["metadata"].get("annotations", {}).get("launcher/runs") == made.runs]
    if ours:  # the cluster may have jobs of others
        cluster.kubectl("delete", "rayjobs", *ours, "--wait=true", "--timeout=60s", check=False)
