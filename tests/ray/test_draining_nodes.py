"""Ray's drain of a real node is told with its deadline, while the workers on it go on."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import ray
from ray.core.generated import autoscaler_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launcher.core.process import ProcessRef
from launcher.runtime.cluster.node_drains import NodeDrain, NodeDrains
from tests.support.clusters import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


class Placed:
    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()


def drain(cluster: Any, node_id: str, *, within_s: float | None) -> None:
    deadline_ms = 0 if within_s is None else int((time.time() + within_s) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(node_id, reason, "a test", deadline_ms)
    assert accepted, why


def test_a_drain_and_its_new_deadline_are_told_and_the_worker_goes_on_until_it_is_let_go(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1)
    where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    actor = ray.remote(Placed).options(num_cpus=0, max_concurrency=4, lifetime="detached", scheduling_strategy=where).remote()
    node_id, pid = ray.get(actor.where.remote())
    process = ProcessRef.of(pid)
    told: list[NodeDrain] = []
    drains = NodeDrains(told.append, poll_s=0.1)
    try:
        time.sleep(0.5)
        assert told == []
        drain(cluster, node_id, within_s=None)
        wait_until(lambda: told, "the drain")
        assert told == [NodeDrain(node_id, None)], "the id is the one that the worker knows"
        drain(cluster, node_id, within_s=1.0)
        wait_until(lambda: len(told) > 1, "the new deadline")
        assert told[1].node_id == node_id
        assert 0.0 <= (told[1].deadline_s or -1.0) <= 1.0
        time.sleep(3.0)
        assert process.alive(), "Ray itself does not end a node at its deadline"
        assert len(told) == 2
        ray.kill(actor)
        wait_until(lambda: [each["Alive"] for each in ray.nodes() if each["NodeID"] == node_id] == [False], "the end of the node")
    finally:
        drains.stop()
