"""What `launch doctor` finds on a Ray cluster, and that the probe leaves nothing there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.backends.base import Result
from launcher.backends.ray_cluster import checks, jobs_api
from launcher.backends.ray_cluster.backend import RayClusterBackend
from launcher.config.schema import JobConfig, RayConfig
from launcher.core.clock import ManualClock
from launcher.jobspec.versions import installed_versions
from tests.unit.backends.ray_cluster.fake_dashboard import ELSEWHERE, FakeDashboard, config

pytestmark = pytest.mark.unit


def results(config: JobConfig) -> dict[str, Result]:
    return {finding.name: finding.result for finding in RayClusterBackend().examine(config)}


def probed(dashboard: FakeDashboard, **changes: str) -> Any:
    """What the probe on the cluster prints, with other versions than here where they are named."""
    report = {"versions": {**installed_versions(), **changes}, "store": {"problem": "", "next": ""}}
    dashboard.log, dashboard.status = f"Runtime env is setting up.\n{json.dumps(report)}\n", "SUCCEEDED"
    return report


def test_an_examination_looks_from_the_cluster_as_well_and_leaves_nothing_there(dashboard: FakeDashboard) -> None:
    probed(dashboard)
    found = results(config())
    assert list(found) == ["Ray there", "room", "versions there", "run store from there"]
    assert set(found.values()) == {Result.OK}
    assert dashboard.jobs == {}
    asked = [json.loads(request.data)["entrypoint"] for request in dashboard.asked if isinstance(request.data, bytes)]
    assert asked == ["python -m launcher.runtime.pod.probe s3://bucket/runs"]


def test_an_examination_goes_on_as_far_as_it_can(dashboard: FakeDashboard) -> None:
    report = probed(dashboard, torch="1.0")
    report["store"]["problem"] = "no such bucket"
    dashboard.log = json.dumps(report)
    found = results(config(workers="5..6", gpu=1))
    assert [name for name, result in found.items() if result is Result.FAILED] == ["room", "versions there", "run store from there"]
    assert results(config(runs="/folder"))["run store"] is Result.FAILED
    dashboard.ray = "2.1.0"
    assert results(config()) == {"Ray there": Result.FAILED}
    dashboard.down = True
    assert results(config()) == {"Ray there": Result.FAILED}
    assert results(config(token_file="/absent")) == {"token": Result.FAILED}


def test_a_cluster_without_launcher_is_told_in_its_own_words(dashboard: FakeDashboard) -> None:
    dashboard.log, dashboard.status = "python: Error while finding module specification: No module named 'launcher'\n", "FAILED"
    (finding,) = [finding for finding in RayClusterBackend().examine(config()) if finding.result is Result.FAILED]
    assert "No module named 'launcher'" in finding.found
    assert dashboard.jobs == {}


def test_a_probe_that_does_not_end_is_stopped(dashboard: FakeDashboard) -> None:
    api = jobs_api.RayApi(RayConfig(address=ELSEWHERE))
    (finding,) = checks.probe(api, config(), ManualClock())
    assert "PENDING" in finding.found
    assert dashboard.jobs == {}


def test_a_probe_that_is_interrupted_leaves_nothing(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(checks.probe(jobs_api.RayApi(RayConfig(address=ELSEWHERE)), config(), clock))
    assert dashboard.jobs == {}


def test_a_probe_whose_submission_had_no_answer_is_stopped_before_it_is_forgotten(dashboard: FakeDashboard) -> None:
    dashboard.lose_answers = 1
    (finding,) = checks.probe(jobs_api.RayApi(RayConfig(address=ELSEWHERE)), config(), ManualClock())
    assert finding.result is Result.FAILED
    assert [request.selector.rpartition("/")[2] for request in dashboard.asked if request.get_method() == "POST"] == ["", "stop"]
    assert dashboard.jobs == {}
