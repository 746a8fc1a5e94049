"""What is asked of Ray for a worker, and what the worker is told of it."""

from __future__ import annotations

import inspect
import queue
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray

from launcher.core.types import RunId, WorkerId
from launcher.runtime.cluster.worker_group import RayPlace, WorkerGroup
from launcher.runtime.worker.actor import WorkerActor
from tests.support.recording import job_spec

pytestmark = pytest.mark.unit
W0 = WorkerId("w0")


class RecordedActors:
    """In place of ray.remote: keeps what was asked for each actor, and what its constructor was given."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []

    def __call__(self, kind: type) -> RecordedActors:
        return self

    def options(self, **options: Any) -> RecordedActors:
        self.asked.append(options)
        return self

    def remote(self, *arguments: Any) -> object:
        self.told.append(inspect.signature(WorkerActor.__init__).bind(None, *arguments).arguments)
        return object()


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> RecordedActors:
    class Context:
        gcs_address = "10.0.0.1:6379"

    made = RecordedActors()
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "remote", made)
    return made


@pytest.mark.parametrize(
    ("config", "there", "asked"),
    [
        ({}, 2, 1),
        ({}, 1, 0),  # not enough for each
        ({"gpu": 0}, 8, 0),
        ({"gpu": 2}, 8, 2),
        ({"resources": {"device": "cpu"}}, 8, 0),
        ({"resources": {"device": "cuda"}}, 1, 1),  # one waits for a place; none shares a GPU
    ],
)
def test_a_worker_is_told_of_as_many_gpus_as_ray_is_asked_for(
    config: dict[str, Any], there: int, asked: int, actors: RecordedActors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": float(there)})
    group = WorkerGroup(job_spec(workers=2, **config), "/runs", RunId("run"), Path("/code"))
    group.connect(RayPlace("10.0.0.1:6379", ""))
    group.start(2, joins=False)
    assert [options["num_gpus"] for options in actors.asked] == [asked] * 2
    assert [given["gpus"] for given in actors.told] == [asked] * 2


class Handle:
    """In place of Ray's handle of an actor: its call is answered when the test says so."""

    def __init__(self) -> None:
        self.answer: Future[object] = Future()
        self.describe = self

    def remote(self) -> Handle:
        return self

    def future(self) -> Future[object]:
        return self.answer


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[object]:
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    monkeypatch.setattr(ray, "kill", found.put)
    return found


@pytest.mark.parametrize("died", [True, False])
def test_a_worker_is_killed_when_ray_has_said_of_what_it_died(killed: queue.SimpleQueue[object], died: bool) -> None:
    """Ray would take the kill for the cause. One that lives though its connection broke is killed all the same."""
    group = WorkerGroup(job_spec(), "/runs", RunId("run"), Path("/code"))
    said: list[tuple[WorkerId, str]] = []
    handle = group.actors[W0] = Handle()
    group.why_dead(W0, lambda worker, why: said.append((worker, why)))
    group.end([W0])
    assert W0 not in group.actors
    assert killed.empty()
    if died:
        handle.answer.set_exception(RuntimeError("The actor is dead.\nCause: its node has died"))
    else:
        handle.answer.set_result(None)
    assert killed.get(timeout=60) is handle
    assert said == [(W0, "Cause: its node has died" if died else "")]


def test_others_are_killed_at_once_and_all_of_them_at_the_end(killed: queue.SimpleQueue[object]) -> None:
    group = WorkerGroup(job_spec(), "/runs", RunId("run"), Path("/code"))
    first, second, third = (group.actors.setdefault(WorkerId(name), Handle()) for name in ("w0", "w1", "w2"))
    group.end([WorkerId("w1")])
    assert killed.get(timeout=60) is second
    group.why_dead(W0, lambda worker, why: None)
    group.end([W0])
    group.end()
    assert {killed.get(timeout=60), killed.get(timeout=60)} == {first, third}
