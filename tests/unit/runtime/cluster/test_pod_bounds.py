"""The bounds of the pods follow those of the run, and never end a pod at work."""

from __future__ import annotations

import threading

import pytest

from launcher.record.desired import WorkerBounds
from launcher.runtime.cluster.pod_bounds import PodBounds, group_patch, pod_bounds

pytestmark = pytest.mark.unit


def bounds(low: int, high: int) -> WorkerBounds:
    return WorkerBounds(min=low, max=high, target=high)


def test_the_upper_bound_of_pods_comes_down_only_with_the_workers() -> None:
    assert pod_bounds(bounds(1, 2), workers=4).max == 4
    assert pod_bounds(bounds(1, 2), workers=2).max == 2
    assert pod_bounds(bounds(1, 6), workers=2).max == 6
    assert pod_bounds(bounds(3, 6), workers=2).min == 3


def test_a_patch_tests_which_group_it_changes_and_leaves_the_replicas_alone() -> None:
    patch = group_patch(bounds(2, 5), "workers")
    assert patch[0] == {"op": "test", "path": "/spec/workerGroupSpecs/0/groupName", "value": "workers"}
    assert {(step["path"].rpartition("/")[2], step["value"]) for step in patch[1:]} == {("minReplicas", 2), ("maxReplicas", 5)}


class Server:
    """An API server that is away for the first few patches."""

    def __init__(self, away: int) -> None:
        self.away, self.patched = away, []  # type: ignore[var-annotated]
        self.done = threading.Event()

    def patch(self, wanted: WorkerBounds) -> None:
        if self.away:
            self.away -= 1
            raise ConnectionError("connection refused")
        self.patched.append(wanted)
        self.done.set()


def test_a_patch_that_fails_is_tried_again_and_told_once() -> None:
    server, told = Server(away=3), []  # type: ignore[var-annotated]
    cluster = PodBounds(lambda: server, told.append, retry_s=0.001)
    cluster.want(bounds(1, 3))
    assert server.done.wait(10)
    cluster.stop()
    assert server.patched == [bounds(1, 3)]
    assert told == ["ConnectionError: connection refused"]


def test_what_is_so_already_is_not_patched_again() -> None:
    server = Server(away=0)
    cluster = PodBounds(lambda: server, lambda why: None)
    for wanted in (bounds(1, 3), bounds(1, 4)):
        server.done.clear()
        cluster.want(wanted)
        assert server.done.wait(10)
        cluster.want(wanted)
    cluster.stop()
    assert server.patched == [bounds(1, 3), bounds(1, 4)]
