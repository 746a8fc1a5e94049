"""A run's RayJob from its launch on: what is known of it, and what remains where a launch fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import Owner
from launcher.backends.kuberay import backend as kuberay
from launcher.backends.kuberay.answers import Pod, RayJob, parse
from launcher.backends.kuberay.backend import KubeRayBackend, why_not_ready
from launcher.backends.kuberay.kubernetes_api import NoAnswer
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import NameTaken
from launcher.core.store import open_store
from launcher.core.types import RunId, Term
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.run_store import RunStore
from tests.unit.backends import golden

pytestmark = pytest.mark.unit
SPEC = golden.spec(KubeRayConfig(image="launcher"))


class FakeCluster:
    """The RayJobs of one cluster. `refuses`: raised once a RayJob is created, which may be there all the same."""

    def __init__(self, backend: KubeRayConfig) -> None:
        pass

    jobs: dict[str, Any]
    companions: list[str]
    refuses: Exception | None
    seen: tuple[Pod, ...]

    def find(self, name: str) -> RayJob | None:
        return parse(self.jobs[name], RayJob) if name in self.jobs else None

    def create(self, document: Any) -> RayJob:
        if not isinstance(self.refuses, NameTaken):
            document["metadata"]["uid"] = "1"
            self.jobs[document["metadata"]["name"]] = document
        if self.refuses is not None:
            raise self.refuses
        return parse(document, RayJob)

    def apply_companion(self, document: Any) -> None:
        self.companions.append(document["kind"])

    def delete(self, name: str) -> None:
        self.jobs.pop(name, None)

    def wait_until_gone(self, name: str, patience_s: float) -> None:
        assert name not in self.jobs

    def pods(self, selector: str) -> tuple[Pod, ...]:
        assert selector == "launcher/run=mlp-abcdef"
        return self.seen

    def warnings(self, of: str) -> list[str]:
        return [f"exceeded quota, for {of}"]

    def secret_value(self, name: str, key: str) -> str:
        pytest.fail("there is no cluster any more")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> type[FakeCluster]:
    FakeCluster.jobs, FakeCluster.companions, FakeCluster.refuses, FakeCluster.seen = {}, [], None, ()
    monkeypatch.setattr(kuberay, "JobApi", FakeCluster)
    return FakeCluster


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    run = RunStore(open_store(str(tmp_path / "runs"), create=True), RunId("mlp-abcdef"))
    run.store.put(run.key("spec-1.json"), json.dumps(SPEC.to_json()).encode())
    desire(run, 1)
    return run


def desire(run: RunStore, revision: int, resumes: Term | None = None) -> None:
    bounds = WorkerBounds(min=1, max=1, target=1)
    assert run.create_desired(Desired(revision=revision, state="running", spec=1, workers=bounds, by="", at="", resumes=resumes))


@pytest.mark.parametrize(
    ("phase", "owner"), [("", Owner.ALIVE), ("Running", Owner.ALIVE), ("Complete", Owner.GONE), ("ValidationFailed", Owner.GONE)]
)
def test_a_run_lives_while_its_rayjob_does(cluster: type[FakeCluster], run: RunStore, phase: str, owner: Owner) -> None:
    KubeRayBackend().launch(SPEC, run)
    cluster.jobs["mlp-abcdef"]["status"] = {"jobDeploymentStatus": phase}
    assert KubeRayBackend().owner(run) is owner


def test_a_rayjob_that_is_not_there_may_be_on_its_way_or_in_another_cluster(cluster: type[FakeCluster], run: RunStore) -> None:
    assert KubeRayBackend().owner(run) is Owner.UNKNOWN


def test_the_rayjob_that_a_resume_replaces_says_nothing_of_the_resumed_run(cluster: type[FakeCluster], run: RunStore) -> None:
    backend = KubeRayBackend()
    backend.launch(SPEC, run)
    cluster.jobs["mlp-abcdef"]["status"] = {"jobDeploymentStatus": "Failed"}
    desire(run, 2, resumes=Term(1))
    assert backend.owner(run) is Owner.UNKNOWN, "its successor comes"
    backend.launch(SPEC, run)
    assert backend.owner(run) is Owner.ALIVE
    desire(run, 3, resumes=Term(1))  # a resize leaves it as it is
    assert backend.owner(run) is Owner.ALIVE


def test_a_rayjob_whose_creation_has_no_answer_does_not_remain(cluster: type[FakeCluster], run: RunStore) -> None:
    cluster.refuses = NoAnswer("the cluster does not answer")
    with pytest.raises(NoAnswer):
        KubeRayBackend().launch(SPEC, run)
    assert cluster.jobs == {}


def test_the_rayjob_of_somebody_else_stays(cluster: type[FakeCluster], run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.refuses = NameTaken("there is a RayJob of this name")
    monkeypatch.setattr(FakeCluster, "delete", lambda *_: pytest.fail("it is not ours"))
    with pytest.raises(NameTaken):
        KubeRayBackend().launch(SPEC, run)


def test_after_the_end_there_is_no_dashboard(cluster: type[FakeCluster], run: RunStore) -> None:
    KubeRayBackend().launch(SPEC, run)
    cluster.jobs["mlp-abcdef"]["status"] = {"jobDeploymentStatus": "Complete", "rayClusterName": "mlp-abcdef-x"}
    assert KubeRayBackend().dashboard(run) is None


def test_a_pending_run_says_what_its_pods_wait_for(cluster: type[FakeCluster], run: RunStore) -> None:
    backend = KubeRayBackend()
    assert "there is no RayJob of it" in backend.reason_pending(run)
    backend.launch(SPEC, run)
    cluster.seen = (parse({"status": {"phase": "Running"}}, Pod),)
    assert "has not taken up the RayJob" in backend.reason_pending(run)
    cluster.jobs["mlp-abcdef"]["status"] = {"jobDeploymentStatus": "Initializing"}
    assert backend.reason_pending(run) == "the RayJob is Initializing; its pods start"
    cluster.seen = ()
    assert backend.reason_pending(run) == "exceeded quota, for mlp-abcdef", "something refuses its pods"


def test_the_last_words_are_the_operators(cluster: type[FakeCluster], run: RunStore) -> None:
    backend = KubeRayBackend()
    assert backend.last_words(run) == ""
    backend.launch(SPEC, run)
    assert backend.last_words(run) == ""
    cluster.jobs["mlp-abcdef"]["status"] = {"reason": "AppFailed", "message": "No module named launcher\n"}
    assert backend.last_words(run) == "AppFailed: No module named launcher"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"phase": "Running"}, ""),
        ({"phase": "Pending", "conditions": None}, ""),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]},
            "pod head: 0/2 nodes are available",
        ),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        (
            {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]},
            "pod head: ErrImagePull: not found",
        ),
    ],
)
def test_why_a_pod_is_not_ready_is_said_in_the_words_of_the_cluster(status: Any, why: str) -> None:
    assert why_not_ready(parse({"metadata": {"name": "head"}, "status": status}, Pod)) == why
