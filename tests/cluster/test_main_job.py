"""The main job on a real cluster, seen and steered from outside of it; its record outlives the cluster."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

import pytest

from tests.cluster.conftest import ClusterProject, TestCluster
from tests.ray.test_main_job import assert_ledger_is_exact

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_resnet_reaches_the_accuracy_of_a_laptop_and_its_record_outlives_the_cluster(project: ClusterProject, cluster: TestCluster) -> None:
    words = [*cluster.words, "workers=1..3", f"runs={project.runs}", "tracking=none", "name=main"]
    shown = project.start("train", "+model=resnet", *words, "-o", "json", stdout=-1, stderr=-1)
    out, err = shown.communicate(timeout=600)
    assert shown.returncode == 0, err
    status = project.status("main")
    assert status["state"] == "SUCCEEDED"
    assert status["metrics"]["accuracy"] >= 0.97
    before = project.launch("events", "main", "--runs", project.runs).stdout
    assert_ledger_is_exact(project.events("main"), status["step"])
    cluster.kubectl("delete", "rayjob", status["run_id"], "--ignore-not-found", "--wait=true", "--timeout=60s")
    assert project.launch("events", "main", "--runs", project.runs).stdout == before
    assert project.status("main") == status
    assert "main" in project.launch("ls", "--runs", project.runs).stdout
    assert out


def test_a_job_of_a_users_own_code_is_seen_and_steered_from_outside(project: ClusterProject, cluster: TestCluster) -> None:
    (project.folder / "models" / "slow.py").write_text(
        (project.folder / "models" / "slow.py").read_text() + '\n\nprint("this line was changed without an image build", flush=True)\n'
    )
    run = project.submit("workers=1..2", "trainer.steps=100000", "elastic.cooldown_s=0")["run_id"]
    status = project.wait_for(run, lambda status: status["world_size"] == 2 and status["state"] == "RUNNING")
    runs = ("--runs", project.runs)

    follower = project.start("logs", run, "-f", *runs, stdout=-1, stderr=-1)
    assert project.json("resize", run, "1", *runs)["workers"]["target"] == 1
    assert run in project.launch("ls", *runs).stdout
    assert any(event["kind"] == "resized" for event in project.events(run))

    page = project.start("dashboard", run, *runs, stdout=-1, stderr=-1)
    try:
        assert page.stdout is not None
        address = page.stdout.readline().strip()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        assert b"<html" in opener.open(address, timeout=60).read().lower()
        root = address.partition("?")[0]
        assert b'"ray_version"' in opener.open(f"{root}api/version", timeout=60).read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{root}api/version", timeout=60)
        assert refused.value.code == 403
    finally:
        page.terminate()
        page.wait(20)

    stopped = project.json("stop", run, *runs)
    assert (stopped["state"], stopped["term"]) == ("STOPPED", 1), "the controller that trained has closed it"
    printed, _ = follower.communicate(timeout=60)
    assert printed.count("this line was changed without an image build") == 2, "once by each worker, each in a pod of its own"

    project.launch("resume", run, "-d", *runs, "workers=1")
    again = project.wait_for(run, lambda now: now["state"] == "RUNNING" and now["step"] > stopped["step"] + 5)
    assert again["run_id"] == status["run_id"]
    assert project.json("stop", run, *runs)["state"] == "STOPPED"
    deadline = time.monotonic() + 120
    while cluster.pods(run) and time.monotonic() < deadline:
        time.sleep(1)
    assert not cluster.pods(run)
