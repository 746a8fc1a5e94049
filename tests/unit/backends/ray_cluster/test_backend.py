"""Jobs on an existing Ray cluster: what its dashboard is asked, and what follows from its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.backends.base import LAST_WORDS, Owner, Result
from launcher.backends.ray_cluster.backend import RayClusterBackend
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from tests.unit.backends.ray_cluster.fake_dashboard import ELSEWHERE, HERE, TOKEN, FakeDashboard, config, desire, spec, take_over

pytestmark = pytest.mark.unit


# the configuration


@pytest.mark.parametrize(
    "address", ["head:6379", "ray://head:10001", "http://", "http://head:port", "http://head:8265/?x=1", "http://[::1", "auto"]
)
def test_what_is_no_dashboards_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address") as caught:
        config(address)
    assert caught.value.where == "backend.address"


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="recorded") as caught:
        config("https://me:pa55@head/ray")
    assert "pa55" not in str(caught.value)


def test_a_token_files_path_means_the_same_in_every_folder() -> None:
    with pytest.raises(ConfigError) as caught:
        config(token_file="token")
    assert caught.value.where == "backend.token_file"


# what fits


def test_gpus_are_counted_where_they_are(dashboard: FakeDashboard) -> None:
    dashboard.gpus = (0, 3, 3)
    backend = RayClusterBackend()
    placed = backend.place(spec(config(workers="1..4", gpu=2)))
    assert (placed.fits, placed.workers, placed.device, placed.gpu_per_worker) == (True, 2, "cuda", 2), "a worker is on one node"
    refused = backend.place(spec(config(workers="3..4", gpu=2)))
    assert (refused.fits, refused.workers) == (False, 2)
    assert "6 GPUs" in refused.reason
    assert backend.place(spec(config(workers=4))).gpu_per_worker == 1, "null: one each where there are enough"
    assert backend.place(spec(config(workers=7))).gpu_per_worker == 0
    on_cpu = backend.place(spec(config(workers=5, resources__device="cpu")))
    assert (on_cpu.workers, on_cpu.device, on_cpu.gpu_per_worker) == (5, "cpu", 0)


def test_a_folder_of_this_machine_is_refused_for_a_cluster_elsewhere_alone(dashboard: FakeDashboard, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RayClusterBackend().place(spec(config(ELSEWHERE, runs=str(tmp_path))))
    assert (caught.value.where, caught.value.given) == ("runs", str(tmp_path))
    assert RayClusterBackend().place(spec(config(HERE, runs=str(tmp_path)))).fits


# the job


def test_a_job_holds_what_the_supervisor_needs_and_no_secret(
    dashboard: FakeDashboard, run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-k3y")
    RayClusterBackend().launch(spec(config()), run)
    assert dashboard.jobs["mlp-abcdef"] == {
        "submission_id": "mlp-abcdef",
        "entrypoint": f"python -m launcher.runtime.supervisor --runs {run.store.uri} --run-id mlp-abcdef --state /tmp/launcher --ray auto",
        "metadata": {"job_name": "digits", "launcher/record": run.uri},
        "entrypoint_num_cpus": 0,
        "status": "PENDING",
        "message": "Job has not started yet.",
    }
    assert "s3cr3t" not in b"".join(request.data for request in dashboard.asked if isinstance(request.data, bytes)).decode()


def test_a_submit_whose_answer_is_lost_makes_one_job(dashboard: FakeDashboard, run: RunStore) -> None:
    dashboard.lose_answers = 1
    RayClusterBackend().launch(spec(config()), run)
    RayClusterBackend().launch(spec(config()), run)
    assert list(dashboard.jobs) == ["mlp-abcdef"]


def test_a_job_of_that_id_of_somebody_else_is_not_taken_for_ours(dashboard: FakeDashboard, run: RunStore) -> None:
    dashboard.jobs["mlp-abcdef"] = {"status": "RUNNING", "metadata": {}}
    with pytest.raises(BackendUnavailable) as caught:
        RayClusterBackend().launch(spec(config()), run)
    assert "already exists" in caught.value.given


def test_a_resume_is_a_job_of_its_own_and_the_one_that_is_looked_at(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = RayClusterBackend()
    backend.launch(spec(config()), run)
    take_over(run, 1)
    dashboard.jobs["mlp-abcdef"]["status"] = "FAILED"
    assert backend.owner(run) is Owner.GONE
    desire(run, 2, resumes=1)
    backend.launch(spec(config()), run)
    assert sorted(dashboard.jobs) == ["mlp-abcdef", "mlp-abcdef-2"]
    assert backend.owner(run) is Owner.ALIVE
    desire(run, 3, resumes=1)  # a resize leaves the job as it is
    assert backend.owner(run) is Owner.ALIVE


@pytest.mark.parametrize(
    ("status", "owner"),
    [
        ("PENDING", Owner.ALIVE),
        ("RUNNING", Owner.ALIVE),
        ("STOPPED", Owner.GONE),
        ("FAILED", Owner.GONE),
        ("SUCCEEDED", Owner.GONE),
    ],
)
def test_a_run_lives_while_its_job_does(dashboard: FakeDashboard, run: RunStore, status: str, owner: Owner) -> None:
    dashboard.jobs["mlp-abcdef"] = {"status": status}
    assert RayClusterBackend().owner(run) is owner


def test_a_job_that_the_cluster_does_not_know_may_be_on_its_way_or_is_gone(run: RunStore) -> None:
    backend = RayClusterBackend()
    assert backend.owner(run) is Owner.UNKNOWN, "it is being submitted"
    take_over(run, 1)
    assert backend.owner(run) is Owner.GONE
    desire(run, 2, resumes=1)
    assert backend.owner(run) is Owner.UNKNOWN, "it is being submitted again"


def test_a_proxy_without_its_cluster_knows_nothing_of_jobs(dashboard: FakeDashboard, run: RunStore) -> None:
    take_over(run, 1)
    dashboard.behind_proxy = True
    assert RayClusterBackend().owner(run) is Owner.UNKNOWN


def test_a_tunnel_may_lead_to_another_cluster(run: RunStore) -> None:
    run.store.put(run.key("spec-1.json"), json.dumps(spec(config(HERE)).to_json()).encode())
    take_over(run, 1)
    assert RayClusterBackend().owner(run) is Owner.UNKNOWN


def test_what_cannot_be_reached_is_not_known(dashboard: FakeDashboard, run: RunStore, tmp_path: Path) -> None:
    dashboard.down = True
    backend = RayClusterBackend()
    assert backend.owner(run) is Owner.UNKNOWN
    assert "Connection refused" in backend.reason_pending(run)
    assert backend.last_words(run) == ""
    assert "could not be ended" in backend.remove(run)
    with pytest.raises(BackendUnavailable):
        backend.dashboard(run)
    absent = config(token_file=str(tmp_path / "absent"))
    run.store.put(run.key("spec-1.json"), json.dumps(spec(absent).to_json()).encode())
    assert backend.owner(run) is Owner.UNKNOWN, "the token lies on another machine"


def test_a_pending_run_says_what_it_waits_for(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = RayClusterBackend()
    assert "no job of this run" in backend.reason_pending(run)
    backend.launch(spec(config()), run)
    assert "Job has not started yet." in backend.reason_pending(run)
    dashboard.jobs["mlp-abcdef"]["status"] = "RUNNING"
    assert backend.reason_pending(run) == "the controller is starting"


def test_last_words_are_the_end_of_the_log_or_what_ray_says(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = RayClusterBackend()
    dashboard.jobs["mlp-abcdef"] = {"status": "FAILED", "message": "no agent"}
    assert backend.last_words(run) == "no agent"
    dashboard.log = "x" * 5000 + "No module named launcher\n"
    assert backend.last_words(run).endswith("No module named launcher")
    assert len(backend.last_words(run)) == LAST_WORDS


def test_removing_stops_the_job_and_is_content_without_one(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = RayClusterBackend()
    assert backend.remove(run) == ""
    backend.launch(spec(config()), run)
    assert backend.remove(run) == ""
    assert dashboard.jobs["mlp-abcdef"]["status"] == "STOPPED"


def test_the_dashboard_is_the_address_and_where_its_token_lies(run: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    page = RayClusterBackend().dashboard(run)
    assert page is not None
    assert (page.url, page.token_file) == (ELSEWHERE, str(tmp_path / "token"))


def test_a_spec_comes_back_as_it_was_written() -> None:
    made = spec(replace(config(token_file="~/token"), name="digits"))
    assert JobSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_variables_go_with_the_spec_and_the_request_has_none_of_them(
    dashboard: FakeDashboard, run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-t0k3n-of-mine")
    made = spec(config(environment={"DATA_ROOT": "/data/on/the/nodes", "HF_TOKEN": {"secret": "TEAM_TOKEN"}}))
    RayClusterBackend().place(made)
    RayClusterBackend().launch(made, run)
    sent = b"".join(request.data for request in dashboard.asked if isinstance(request.data, bytes)).decode()
    assert not [word for word in ("/data/on/the/nodes", "TEAM_TOKEN", "s3cr3t") if word in sent]
    assert "runtime_env" not in dashboard.jobs["mlp-abcdef"]


def test_a_secret_of_kubernetes_is_refused() -> None:
    made = spec(config(environment={"HF_TOKEN": {"secret": "team/token"}}))
    with pytest.raises(ConfigError) as caught:
        RayClusterBackend().place(made)
    assert caught.value.where == "environment.HF_TOKEN.secret"
    findings = {finding.name: finding.result for finding in RayClusterBackend().examine(made.config)}
    assert findings["secrets"] is Result.FAILED
