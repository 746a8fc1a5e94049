"""SIGTERM to a real actor's process is a notice, and still an end; a notice file is seen."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launcher.core.process import ProcessRef
from launcher.runtime.worker.termination_notices import TerminationNotice, TerminationNotices
from tests.support.clusters import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


class Noticing:
    """An actor made as a worker is."""

    def __init__(self, drain_s: float, grace_s: float, notice_file: str | None) -> None:
        self._told: list[TerminationNotice] = []
        self._notices = TerminationNotices(self._told.append, drain_s=drain_s, notice_file=notice_file, poll_s=0.1, grace_s=grace_s)
        self._notices.install()

    def pid(self) -> int:
        return os.getpid()

    def told(self) -> list[TerminationNotice]:
        return self._told

    def release(self) -> None:
        self._notices.released()

    def terminated_child(self) -> int | None:
        """How a forked child ends on SIGTERM: the exit code as multiprocessing gives it; None if it does not."""
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(child.pid or 0, signal.SIGTERM)
        child.join(timeout=10)
        code = child.exitcode
        child.kill()
        return code


Started = tuple[Any, ProcessRef]
Start = Callable[..., Started]


@pytest.fixture
def start(cluster: Any) -> Iterator[Start]:
    actors = []

    def start(*, drain_s: float = 60.0, grace_s: float = 0.5, notice_file: str | None = None, node: Any = None) -> Started:
        where = NodeAffinitySchedulingStrategy((node or cluster.head_node).node_id, soft=False)
        options = {"num_cpus": 0, "max_concurrency": 4, "lifetime": "detached", "name": f"n{len(actors)}", "scheduling_strategy": where}
        actor = ray.remote(Noticing).options(**options).remote(drain_s, grace_s, notice_file)
        actors.append(actor)
        return actor, ProcessRef.of(ray.get(actor.pid.remote()))

    yield start
    for actor in actors:
        with suppress(ray.exceptions.RayActorError):
            ray.kill(actor)


def told(actor: Any) -> list[TerminationNotice]:
    notices: list[TerminationNotice] = ray.get(actor.told.remote(), timeout=30)
    return notices


def ends(process: ProcessRef, within_s: float = 30.0) -> None:
    wait_until(lambda: not process.alive(), f"the end of process {process.pid}", within_s=within_s)


def test_sigterm_is_one_notice_and_the_process_goes_on(start: Start) -> None:
    actor, process = start()
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        wait_until(lambda: told(actor), "the notice")
    assert told(actor) == [TerminationNotice("SIGTERM", 60.0, f"process {process.pid} was sent SIGTERM")]
    assert process.alive()


def test_a_terminated_process_ends_itself_after_its_deadline(start: Start) -> None:
    actor, process = start(drain_s=1.0, grace_s=0.5)
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: told(actor), "the notice")
    ends(process)
    assert time.monotonic() - sent >= 1.5, "not before its deadline and the grace"
    with pytest.raises(ray.exceptions.ActorDiedError):
        told(actor)


@pytest.mark.parametrize("first", ["release", "signal"])
def test_a_released_process_ends_without_waiting_for_the_deadline(start: Start, first: str) -> None:
    actor, process = start(drain_s=600.0)
    if first == "release":
        ray.get(actor.release.remote())
        assert process.alive(), "a release alone ends nothing"
    os.kill(process.pid, signal.SIGTERM)
    if first == "signal":
        wait_until(lambda: told(actor), "the notice")
        ray.get(actor.release.remote())
    ends(process)


def test_sigkill_and_ray_end_it_at_once_as_ever(start: Start) -> None:
    _, killed = start()
    os.kill(killed.pid, signal.SIGKILL)
    ends(killed)
    actor, ended = start()
    os.kill(ended.pid, signal.SIGTERM)
    wait_until(lambda: told(actor), "the notice")
    ray.kill(actor)
    ends(ended)


def test_it_ends_with_its_node(cluster: Any, start: Start) -> None:
    node = cluster.add_node(num_cpus=1)
    _, process = start(node=node)
    cluster.remove_node(node, allow_graceful=False)
    ends(process)


def test_a_forked_child_ends_on_sigterm_and_its_parent_is_told_nothing(start: Start) -> None:
    actor, _ = start()
    assert ray.get(actor.terminated_child.remote(), timeout=60) == -signal.SIGTERM
    assert told(actor) == []


def test_a_notice_file_is_seen_and_ends_nothing(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    actor, process = start(drain_s=0.1, grace_s=0.1, notice_file=str(path))
    assert told(actor) == []
    path.write_text(json.dumps({"deadline_s": 120}))
    wait_until(lambda: told(actor), "the notice")
    assert told(actor)[-1] == TerminationNotice("notice file", 120.0, f"{path} grants 120 s")
    time.sleep(1.0)
    assert process.alive()
