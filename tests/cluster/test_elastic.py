"""One job on a real cluster, and everything that may happen to it, in turn: it trains on, and its record stays exact."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import ClusterProject, TestCluster
from tests.ray.test_main_job import assert_ledger_is_exact

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Condition = Callable[[Any], bool]


class Watched:
    """A running job, and what became of its workers."""

    def __init__(self, project: ClusterProject, cluster: TestCluster, run: Any) -> None:
        self._project, self._cluster, self._run = project, cluster, run
        self.run_id = str(run["run_id"])

    def status(self) -> Any:
        return self._project.status(self.run_id)

    def trains(self, size: int, *, after: int = 0, generation: int = 0) -> Any:
        """Its status when it trains with so many workers, in a later generation, and is some steps further."""

        def condition(status: Any) -> bool:
            further = status["step"] > after + 5 and status["generation"] > generation
            return bool(status["state"] == "RUNNING" and status["world_size"] == size and further)

        return self._project.wait_for(self.run_id, condition)

    def changed(self, before: Any) -> Any:
        return self._project.wait_for(
            self.run_id, lambda status: status["generation"] > before["generation"] and status["state"] == "RUNNING"
        )

    def head_node(self) -> str:
        return next(iter(self._cluster.pods(self.run_id, "head").values()))

    def changes(self) -> list[Any]:
        return [event for event in self._project.events(self.run_id) if event["kind"] == "resized"]


def processes(status: Any) -> set[tuple[str, int]]:
    """Pod and process id of each worker: the same only where it is the same process."""
    return {(member["node"], member["pid"]) for member in status["members"]}


def test_a_job_trains_on_through_whatever_happens_to_its_cluster(
    project: ClusterProject, cluster: TestCluster, own_cluster: Cluster
) -> None:
    run = project.submit("workers=1..2", "trainer.steps=1000000", "checkpoint.every_steps=100", "elastic.cooldown_s=0")
    job = Watched(project, cluster, run)
    before = job.trains(2)

    # a person asks for more: the autoscaler brings the pod
    project.launch("resize", job.run_id, "1..3", "--no-wait", "--runs", project.runs)
    after = job.trains(3, after=before["step"])
    assert processes(before) < processes(after), "who was there stays"

    # a pod is deleted: a planned shrink, then a new pod takes its place
    before = after
    victim = before["members"][2]
    cluster.kubectl("delete", "pod", victim["node"], "--wait=false")
    after = job.changed(before)
    assert processes(after) == processes(before) - {(victim["node"], victim["pid"])}
    assert job.changes()[-1]["cause"] == "drain"
    before = job.trains(3, after=after["step"])

    # a worker is killed
    victim = before["members"][1]
    cluster.kubectl("exec", victim["node"], "-c", "ray-worker", "--", "kill", "-9", str(victim["pid"]))
    after = job.changed(before)
    assert processes(before) - {(victim["node"], victim["pid"])} <= processes(after)
    before = job.trains(3, after=after["step"])

    # a node is drained by kubectl
    node = next(name for name in own_cluster.nodes() if name != job.head_node())
    moved = {pod for pod, where in cluster.pods(job.run_id).items() if where == node}
    cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=100s")
    after = job.changed(before) if moved else before
    assert not {pod for pod, _ in processes(after)} & moved
    cluster.kubectl("uncordon", node)
    before = job.trains(3, after=after["step"])

    # the operator and the S3 server are restarted
    own_cluster.restart_operator()
    own_cluster.restart_store(pause_s=5.0)
    after = job.trains(3, after=before["step"])
    assert processes(after) == processes(before)
    assert after["steps_lost"] == 0

    # a node dies without warning
    before = after
    lost = {pod for pod, where in cluster.pods(job.run_id).items() if where == node}
    assert lost, "a worker is there to be lost"
    own_cluster.kill_node(node)
    after = job.changed(before)
    assert {each for each in processes(before) if each[0] not in lost} <= processes(after)
    assert after["steps_lost"] == 0
    own_cluster.up()
    before = job.trains(3, after=after["step"])

    # the head dies, and with it Ray and the controller: back to the last checkpoint at most
    head = next(iter(cluster.pods(job.run_id, "head")))
    cluster.kubectl("delete", "pod", head, "--grace-period=0", "--force")
    after = job.trains(3, after=before["checkpoint"]["step"], generation=before["generation"])
    assert after["term"] > before["term"]
    assert after["steps_lost"] <= 100 + 50, "a checkpoint each 100 steps, and those that were on their way"

    for change in job.changes():
        print(
            f"{change['cause']:8} {change['from_size']} -> {change['to_size']}: pause {change['pause_s']} s, detect {change.get('detect_s')}"
        )
    ended = project.json("stop", job.run_id, "--runs", project.runs)
    assert ended["state"] == "STOPPED", ended["reason"]
    assert ended["samples_repeated"] == ended["steps_lost"] * 64, "the steps that the head's loss cost, and no other"
    assert_ledger_is_exact(project.events(job.run_id), ended["step"])
    deadline = time.monotonic() + 120
    while cluster.pods(job.run_id, "head") and time.monotonic() < deadline:
        time.sleep(1)
    assert not cluster.pods(job.run_id, "head"), "its pods go with it"
