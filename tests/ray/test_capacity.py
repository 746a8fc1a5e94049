"""Nodes come, are drained and die under a job: capacity as a pool of counted GPUs, on nodes that join a local Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nodes import RayNode
from tests.ray.test_elastic import RUNNING, begin, pids, stop, trains_with
from tests.ray.test_main_job import assert_ledger_is_exact
from tests.support.jobs import HANG_S, Project, project_in, ray_of_its_own

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]


class Pool:
    """A local Ray whose GPUs are on nodes of their own, one each: counted, not there."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.environment = project._environment()
        code = "from launcher.backends.local import ray_instance as r; r.ensure(r.folder())"
        subprocess.run([sys.executable, "-c", code], env=self.environment, check=True, timeout=60)
        file = project.ray_folder / "ray.json"
        deadline = time.monotonic() + HANG_S
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        document = json.loads(file.read_text())
        self.address = document["address"]
        file.write_text(json.dumps({**document, "gpus": 2}))  # what the local backend counts is its own machine
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(project.ray_folder / "token")}
        self.nodes: list[RayNode] = []
        self._drained = False

    def fill(self) -> None:
        """Two nodes that take workers, whatever became of those before."""
        if self._drained:
            for node in self.nodes:
                node.kill()
        self._drained = False
        while sum(bool(node.processes()) for node in self.nodes) < 2:
            self.add()

    def with_gpu(self) -> list[str]:
        """Ids of the living nodes that have one."""
        code = f"import json, ray; ray.init(address={self.address!r}, logging_level='ERROR'); print(json.dumps(ray.nodes()))"
        environment = {**os.environ, **self.environment}
        said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60, capture_output=True, text=True).stdout
        nodes = json.loads(said.splitlines()[-1])
        return [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]

    def add(self) -> RayNode:
        log = self.project.ray_folder / f"node-{len(self.nodes)}.log"
        self.nodes.append(RayNode(self.address, log, environment=self.environment, num_gpus=1))
        self.nodes[-1].wait()  # two that start at once would take each other's ports
        return self.nodes[-1]

    def node_of(self, pid: int) -> RayNode:
        return next(node for node in self.nodes if pid in node.processes())

    def drain(self, node_id: str, deadline_s: int) -> None:
        command = ["ray", "drain-node", f"--address={self.address}", f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=spot", f"--deadline-remaining-seconds={deadline_s}"]
        self._drained = True
        command[0] = str(Path(sys.executable).with_name("ray"))
        subprocess.run(command, env={**os.environ, **self.environment}, check=True, timeout=60, capture_output=True)


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with ray_of_its_own() as ray_folder, project_in(tmp_path_factory.mktemp("capacity"), ray_folder) as project:
        made = Pool(project)
        try:
            yield made
        finally:
            for node in made.nodes:
                node.kill()


@pytest.fixture
def pool(shared_pool: Pool) -> Iterator[Pool]:
    """Two nodes with nobody's workers on them."""
    shared_pool.fill()
    yield shared_pool
    shared_pool.project.stop_all()


def waits(project: Project, run: Any) -> Any:
    return project.wait_for(run["run_id"], lambda status: status["waiting_for"] == "1 worker with 1 GPU each")


def test_nodes_die_and_come_back_under_a_job_that_goes_on(pool: Pool) -> None:
    project = pool.project
    run, before = begin(project, "1..2", "gpu=1", "resources.device=cpu")
    pool.node_of(pids(before)[1]).kill()
    small = project.wait_for(run["run_id"], trains_with(1, before))
    assert pids(small) == pids(before)[:1]
    assert waits(project, run)["state"] == RUNNING, "a standing offer does not stop the others"
    pool.add()
    large = project.wait_for(run["run_id"], trains_with(2, small))
    assert pids(large)[0] == pids(before)[0]
    stop(project, run)


def test_without_capacity_the_run_waits_with_the_reason_and_fails_at_its_deadline(pool: Pool) -> None:
    project = pool.project
    run, before = begin(project, "2..2", "gpu=1", "resources.device=cpu", "elastic.capacity_timeout_s=45")
    pool.node_of(pids(before)[1]).kill()
    held = waits(project, run)
    assert held["state"] == "RESIZING"
    assert "1 of at least 2 workers are left" in held["reason"]
    ended = project.wait_for_end(run["run_id"])
    assert (ended["state"], ended["exit_code"], ended["steps_lost"]) == ("FAILED", 4, 0)
    assert "elastic.capacity_timeout_s" in ended["reason"]
    pool.add()
    resumed = project.json("resume", run["run_id"], f"trainer.steps={ended['step'] + 5}", "--runs", project.runs)
    assert resumed["state"] == "SUCCEEDED"
    assert resumed["steps_lost"] == 0, "what was held was saved"
    assert_ledger_is_exact(project.events(run["run_id"]), resumed["step"])


def test_a_drained_node_is_left_in_time(pool: Pool) -> None:
    project = pool.project
    run, before = begin(project, "1..2", "gpu=1", "resources.device=cpu")
    pool.drain(pool.with_gpu()[0], 30)
    small = project.wait_for(run["run_id"], trains_with(1, before))
    assert set(pids(small)) < set(pids(before))
    stop(project, run)
    events = project.events(run["run_id"])
    assert next(event for event in events if event["kind"] == "resized")["cause"] == "drain"
