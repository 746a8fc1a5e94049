"""The cases of the resize benchmark, and ours in each of them: the job by the real command, requests, faults, pauses."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import elastic_job
from benchmarks.elastic_job import ElasticJob, TookTooLong
from benchmarks.nodes import Host, NodeFailed, NoNamespaces, RayNode, alive, network
from benchmarks.pauses import NothingMeasured, median_step, pause_of_survivors
from benchmarks.sandbox import CommandFailed, Sandbox

MOST = 4
AFTER_S = 1.5
BEFORE_PLANNED_S = 3.0
"""How far before its event a planned change is looked for: its pause is shorter."""
NODE_STARTS = 3
CHANGE_S = 120.0
"""A hang limit for one change."""
RAY_TRAIN, TORCHFT = "Ray Train elastic", "torchft"


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    overrides: dict[str, str]
    checkpoint_every: int
    """Steps, on both sides: a few seconds to a minute of training."""
    state: int
    """Bytes of parameters, buffers and momentum."""
    batch: int
    """Samples of a step, in 8 shards: so many that 4 workers on 2 cores take less than half a second."""
    calm_s: float
    """Before a change: for the median of a step."""


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    begins: int
    """World size before it."""
    ends: int
    planned: bool
    limit_s: float
    """Bar of the pause beyond one step, seconds; a planned change of a big state may take the raw copy 1.3 times besides."""
    node: bool = False
    """Needs nodes of their own."""
    peers: tuple[str, ...] = ()


MODELS = {
    model.name: model
    for model in (
        Model(
            name="mlp",
            overrides={"+model": "mlp", "model._target_": "timed.TimedMLP"},
            checkpoint_every=500,
            state=680_016,
            batch=64,
            calm_s=3.0,
        ),
        # 68 channels instead of 64: 101 MB with momentum
        Model(
            name="resnet",
            overrides={"+model": "resnet", "model._target_": "timed.TimedResNet", "model.width": "68"},
            checkpoint_every=50,
            state=100_937_264,
            batch=16,
            calm_s=5.0,
        ),
    )
}
CASES = {
    case.name: case
    for case in (
        Case(name="grow", begins=3, ends=4, planned=True, limit_s=0.25, peers=(RAY_TRAIN, TORCHFT)),
        Case(name="shrink", begins=4, ends=3, planned=True, limit_s=0.25),
        Case(name="drain", begins=4, ends=3, planned=True, limit_s=0.25),
        Case(name="kill", begins=4, ends=3, planned=False, limit_s=0.5, peers=(RAY_TRAIN, TORCHFT)),
        Case(name="frozen", begins=4, ends=3, planned=False, limit_s=5.0, peers=(TORCHFT,)),
        Case(name="node_killed", begins=4, ends=3, planned=False, limit_s=0.5, node=True, peers=(RAY_TRAIN,)),
        Case(name="node_silent", begins=4, ends=3, planned=False, limit_s=5.0, node=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One change of ours."""

    case: str
    pause_s: float
    step_s: float
    first_step_s: float
    """From the request or the fault to the first step at the new size."""
    slowdown: float
    """Median step of the survivors between the request and the change / the one before."""
    steps_lost: int
    samples_repeated: int
    event: dict[str, Any]


def job_overrides(model: Model, **more: str) -> dict[str, str]:
    return {
        **model.overrides,
        "data": "synthetic",
        "optimizer": "sgd",
        "scheduler": "none",
        "tracking": "none",
        "trainer.epochs": "null",
        "trainer.steps": str(10**8),
        "trainer.global_batch_size": str(model.batch),
        "trainer.micro_batch_size": str(model.batch // 8),
        "checkpoint.every_steps": str(model.checkpoint_every),
        "resources.threads": "1",
        "elastic.cooldown_s": "0",  # the worker that a fault took comes back at once, for the next measurement
        **more,
    }


def measure_ours(sandbox: Sandbox, model: Model, cases: list[Case], n: int, failed: list[str]) -> dict[str, list[Measured]]:
    """What was measured, by case; a job that did not come to its end leaves what it had before, and its reason in `failed`."""
    found: dict[str, list[Measured]] = defaultdict(list)
    for some, measure_all in (
        ([case for case in cases if not case.node], measure_on_one_node),
        ([case for case in cases if case.node], measure_on_nodes),
    ):
        if some:
            try:
                measure_all(sandbox, model, some, n, found)
            except (NoNamespaces, NodeFailed, NothingMeasured, CommandFailed, TookTooLong) as error:
                failed.append(f"{model.name}, {', '.join(case.name for case in some)}: {type(error).__name__}: {error}")
            finally:
                sandbox.sweep()
    return found


def measure_on_one_node(sandbox: Sandbox, model: Model, cases: list[Case], n: int, found: dict[str, list[Measured]]) -> None:
    ray = sandbox.ray_folder(f"r{model.name[0]}")
    try:
        job = elastic_job.start(sandbox, ray, job_overrides(model), workers=(1, MOST, MOST - 1))
        job.wait_for_size(MOST - 1)
        measure_plain(job, cases, n, model.calm_s, found)
        job.stop()
    finally:
        sandbox.stop_ray(ray)


def measure_plain(job: ElasticJob, cases: list[Case], n: int, calm_s: float, found: dict[str, list[Measured]]) -> None:
    """All cases in one job, in turn; between them it is brought to the size that the next one begins with."""
    for number in range(n):
        for case in cases:
            bring_to(job, case.begins)
            act: dict[str, Callable[[int], None]] = {
                "grow": lambda pid: job.resize(MOST),
                "shrink": lambda pid: job.resize(MOST - 1),
                "kill": lambda pid: os.kill(pid, signal.SIGKILL),
                "frozen": lambda pid: os.kill(pid, signal.SIGSTOP),
                "drain": lambda pid: os.kill(pid, signal.SIGTERM),
            }
            victim = next(member for member in job.status()["members"] if member["rank"] == number % case.begins)
            pid = victim["pid"]
            hurt = None if case.name in ("grow", "shrink") else victim["id"]
            found[case.name].append(measure(job, case, calm_s, partial(act[case.name], pid), hurt))
            log(f"{number + 1}/{n} {job.run_id} {case.name}: {found[case.name][-1].pause_s:.3f} s")
            if case.name == "frozen":
                os.kill(pid, signal.SIGCONT)
                gone(pid)


def bring_to(job: ElasticJob, size: int) -> None:
    if job.status()["workers"]["target"] != size:
        job.resize(size)
    job.wait_for_size(size)


def gone(pid: int, patience_s: float = 30.0) -> None:
    """Wait until the process of an evicted worker has ended. Raises TookTooLong."""
    deadline = time.monotonic() + patience_s
    while alive(pid):
        if time.monotonic() > deadline:
            raise TookTooLong(f"pid {pid} was evicted, woke, and still lives after {patience_s:g} s")
        time.sleep(0.1)


def measure(job: ElasticJob, case: Case, calm_s: float, act: Callable[[], None], victim: str | None = None) -> Measured:
    """One change: calm steps, the request or the fault, the first steps after it. `victim` is the id of the worker that is hurt."""
    time.sleep(calm_s)
    before = job.status()
    members = set(job.pids().values())
    at = time.monotonic()
    act()
    event = job.wait_for_change(case.ends, at, CHANGE_S, victim)
    time.sleep(AFTER_S)
    after = job.status()
    survivors = members & set(job.pids().values())
    begin = max(at, event["at"] - BEFORE_PLANNED_S) if case.planned else at
    steps = job.steps()
    formed_at = event["at"] - event["first_step_s"] if case.planned else None
    pause = pause_of_survivors(steps, survivors, (at - calm_s, at), (begin, event["at"] + AFTER_S / 2), formed_at)
    return Measured(
        case=case.name,
        pause_s=pause.pause_s,
        step_s=pause.step_s,
        first_step_s=(event["at"] if case.planned else pause.resumed_at) - at,
        slowdown=slowdown(steps, survivors, at, event["at"], pause.step_s) if case.name == "grow" else 1.0,
        steps_lost=after["steps_lost"] - before["steps_lost"],
        samples_repeated=after["samples_repeated"] - before["samples_repeated"],
        event=event,
    )


def slowdown(steps: dict[int, list[float]], survivors: set[int], begin: float, end: float, step_s: float) -> float:
    """1.0 where there was no time to see one."""
    if end - begin < 1.0:
        return 1.0
    return statistics.median(median_step(steps[pid], begin, end) for pid in survivors) / step_s


# Ours on nodes that die or fall silent


class Nodes:
    """A head without GPUs, and two nodes with so many counted GPUs that the last worker is on a node of its own."""

    def __init__(self, sandbox: Sandbox, ray: Path, hosts: Sequence[Host]) -> None:
        self.head, self._steady, self.host = hosts
        self._sandbox = sandbox
        self._ray = ray
        self._started = 0
        code = "from launcher.backends.local import ray_instance as r; r.ensure(r.folder())"
        sandbox.run(self.head.command([sys.executable, "-c", code]), timeout_s=60, more={"LAUNCHER_RAY_DIR": str(ray)})
        deadline = time.monotonic() + CHANGE_S
        while not (ray / "ray.json").exists():
            if time.monotonic() > deadline:
                raise CommandFailed(f"the Ray of the nodes was not ready within {CHANGE_S:g} s")
            time.sleep(0.2)
        # The local backend counts the GPUs of its own machine; these are counted on nodes that join later.
        document = json.loads((ray / "ray.json").read_text())
        self._address = document["address"]
        (ray / "ray.json").write_text(json.dumps({**document, "gpus": MOST}))
        self.steady = self._node(self._steady, MOST - 1)
        self.last = self._node(self.host, 1)

    def replace_last(self) -> None:
        self.last.kill()
        self.last = self._node(self.host, 1)

    def _node(self, host: Host, gpus: int) -> RayNode:
        self._started += 1
        environment = self._sandbox.environment(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._ray / "token"), "LAUNCHER_RAY_DIR": str(self._ray)}
        )
        log = self._sandbox.folder / f"node-{self._started}.log"
        for _ in range(NODE_STARTS - 1):
            node = RayNode(self._address, log, environment=environment, num_gpus=gpus, host=host)
            try:
                node.wait()
            except NodeFailed:  # on a busy machine Ray's own patience with its processes is too short now and then
                node.kill()
            else:
                return node
        node = RayNode(self._address, log, environment=environment, num_gpus=gpus, host=host)
        node.wait()
        return node


def measure_on_nodes(sandbox: Sandbox, model: Model, cases: list[Case], n: int, found: dict[str, list[Measured]]) -> None:
    with network(sandbox.folder, 3) as net:
        ray = sandbox.ray_folder(f"n{model.name[0]}")
        try:
            nodes = Nodes(sandbox, ray, net.hosts)
            overrides = job_overrides(model, gpu="1", **{"resources.device": "cpu"})
            job = elastic_job.start(sandbox, ray, overrides, workers=(1, MOST, MOST), host=nodes.head)
            for number in range(n):
                for case in cases:
                    job.wait_for_size(MOST)
                    lost = [member for member in job.status()["members"] if member["node"] == nodes.host.name]
                    if len(lost) != 1:
                        raise CommandFailed(f"{len(lost)} workers are on {nodes.host.name}, one was to be: {job.status()['members']}")
                    act = nodes.last.kill if case.name == "node_killed" else partial(net.silence, nodes.host)
                    found[case.name].append(measure(job, case, model.calm_s, act, lost[0]["id"]))
                    if case.name == "node_silent":
                        net.restore(nodes.host)
                        gone(lost[0]["pid"])
                    log(f"{number + 1}/{n} {job.run_id} {case.name}: {found[case.name][-1].pause_s:.3f} s")
                    nodes.replace_last()
            job.stop()
        finally:
            sandbox.stop_ray(ray)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
