"""Jobs on a Ray cluster that is there: what is asked of its dashboard, and what follows from what it answers."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest

from launcher.backends.base import Owner, Result
from launcher.backends.ray_cluster import backend as existing_ray
from launcher.backends.ray_cluster import checks as existing_ray_checks
from launcher.backends.ray_cluster import jobs_api as ray_api
from launcher.backends.ray_cluster.backend import ExistingRayBackend
from launcher.config.schema import JobConfig, RayConfig
from launcher.core.clock import ManualClock
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.core.store import open_store
from launcher.core.types import RunId, Step, Term
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.versions import installed_versions
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
ELSEWHERE = "http://203.0.113.7:8265"
HERE = "http://127.0.0.1:8265"
TOKEN = "s3cr3t-t0k3n"
DENIED = {None: (401, "Unauthorized: Missing authentication token"), "wrong": (403, "Forbidden: Invalid authentication token")}


@dataclass
class FakeDashboard:
    """Answers as a Ray's dashboard does; keeps what it was asked."""

    ray: str = version("ray")
    token: str | None = None
    gpus: tuple[int, ...] = (4,)
    jobs: dict[str, Any] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    status: str = "PENDING"
    """Of a job that was just submitted."""
    lose_answers: int = 0
    """Of so many submits: they are done, but nobody hears it."""
    down: bool = False
    behind_proxy: bool = False
    """What answers is a proxy that finds nothing behind it."""
    log: str = ""

    def __call__(self, request: Request, *, timeout: float) -> io.BytesIO:
        self.asked.append(request)
        if self.down:
            raise URLError(ConnectionRefusedError(111, "Connection refused"))
        if self.behind_proxy:
            raise answer(request, 404, "default backend - 404")
        given = request.get_header("Authorization")
        if self.token is not None and given != f"Bearer {self.token}":
            raise answer(request, *DENIED[None if given is None else "wrong"])
        return io.BytesIO(json.dumps(self._answer(request)).encode())

    def _answer(self, request: Request) -> Any:
        path = request.selector.partition("?")[0].removeprefix("/prefix")
        if path == "/api/version":
            return {"version": "4", "ray_version": self.ray}
        if path == "/api/v0/nodes":
            nodes = [{"resources_total": {"CPU": 8.0, **({"GPU": float(gpus)} if gpus else {})}} for gpus in self.gpus]
            return {"result": True, "data": {"result": {"result": nodes}}}
        if path == "/api/jobs/":
            assert isinstance(request.data, bytes)
            return self._submit(request, json.loads(request.data))
        name, _, what = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            raise answer(request, 404, f"Job {name} does not exist")
        if request.get_method() == "DELETE":
            return self.jobs.pop(name)
        if what == "logs":
            return {"logs": self.log}
        if what == "stop":
            self.jobs[name]["status"] = "STOPPED"
        return self.jobs[name]

    def _submit(self, request: Request, document: Any) -> Any:
        name = document["submission_id"]
        if name in self.jobs:
            raise answer(request, 500, f"Traceback ...\nValueError: Job with submission_id {name} already exists.\n.\n")
        self.jobs[name] = {**document, "status": self.status, "message": "Job has not started yet."}
        if self.lose_answers:
            self.lose_answers -= 1
            raise TimeoutError("timed out")
        return {"submission_id": name}


def answer(request: Request, code: int, text: str) -> HTTPError:
    return HTTPError(request.full_url, code, "as it is", Message(), io.BytesIO(text.encode()))


@pytest.fixture(autouse=True)
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDashboard:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = FakeDashboard()
    monkeypatch.setattr(ray_api, "urlopen", made)
    return made


def config(address: str = ELSEWHERE, runs: str = "s3://bucket/runs", token_file: str | None = None, **changes: Any) -> JobConfig:
    return job_config(runs, backend={"name": "ray", "address": address, "token_file": token_file}, **changes)


def spec(config: JobConfig) -> JobSpec:
    return JobSpec(run_id=RunId("mlp-abcdef"), name="digits", config=config, code=CodeRef(digest="0"), versions={}, submitted_at="")


def wish(run: RunStore, revision: int, resumes: int | None = None) -> None:
    bounds = WorkerBounds(min=1, max=1, target=1)
    wanted = Desired(
        revision=revision, state="running", spec=1, workers=bounds, by="", at="", resumes=None if resumes is None else Term(resumes)
    )
    assert run.create_desired(wanted)


def take_office(run: RunStore, term: int) -> None:
    assert run.claim_just(Term(term), "a controller", "")
    assert run.create_base(Term(term), TermBase(from_term=None, checkpoint_step=None, adopted_step=Step(0)))


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    """A record as a submit leaves it, before the backend is asked."""
    run = RunStore(open_store(str(tmp_path / "runs"), create=True), RunId("mlp-abcdef"))
    run.store.put(run.key("spec-1.json"), json.dumps(spec(config()).to_json()).encode())
    wish(run, 1)
    return run


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


# the token


def test_the_token_comes_from_the_file_then_the_environment_then_rays_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_api.read_token(None) is None
    (tmp_path / ".ray").mkdir()
    for name, text in ((".ray/auth_token", "one\n"), ("two", "two\n"), ("four", " four\n")):
        (tmp_path / name).write_text(text)
    found = []
    found.append(ray_api.read_token(None))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "two"))
    found.append(ray_api.read_token(None))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "three")
    found.append(ray_api.read_token(None))
    found.append(ray_api.read_token("~/four"))
    assert [token and token.value for token in found] == ["one", "two", "three", "four"]
    assert [token and token.path for token in found] == [
        str(tmp_path / ".ray/auth_token"),
        str(tmp_path / "two"),
        "",
        str(tmp_path / "four"),
    ]


def test_a_token_file_that_is_missing_or_holds_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("two\nlines")
    for name in ("absent", "broken"):
        with pytest.raises(ConfigError) as caught:
            ray_api.read_token(str(tmp_path / name))
        assert (caught.value.where, caught.value.given) == ("backend.token_file", str(tmp_path / name))
        assert "lines" not in str(caught.value)


def test_a_token_is_sent_and_not_passed_on_to_where_the_address_points(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert ExistingRayBackend().place(spec(config())).fits
    assert all("Authorization" not in request.headers for request in dashboard.asked), "urllib passes on what is in headers"


@pytest.mark.parametrize("given", [None, "wrong"])
def test_a_token_that_is_missing_or_wrong_is_said_to_be_so(
    dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    dashboard.token = TOKEN
    if given:
        monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    with pytest.raises(BackendUnavailable, match="refuses the token" if given else "asks for a token") as caught:
        ExistingRayBackend().place(spec(config()))
    assert "backend.token_file" in caught.value.next
    assert ("RAY_AUTH_TOKEN" if given else "no token") in caught.value.given
    assert "wrong" not in str(caught.value)


# what fits


def test_another_version_of_ray_is_refused(dashboard: FakeDashboard) -> None:
    dashboard.ray = "2.1.0"
    with pytest.raises(BackendUnavailable, match="another version") as caught:
        ExistingRayBackend().place(spec(config()))
    assert "2.1.0" in caught.value.given
    assert "ray==2.1.0" in caught.value.next


def test_gpus_are_counted_where_they_are(dashboard: FakeDashboard) -> None:
    dashboard.gpus = (0, 3, 3)
    backend = ExistingRayBackend()
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
        ExistingRayBackend().place(spec(config(ELSEWHERE, runs=str(tmp_path))))
    assert (caught.value.where, caught.value.given) == ("runs", str(tmp_path))
    assert ExistingRayBackend().place(spec(config(HERE, runs=str(tmp_path)))).fits


def test_a_cluster_that_does_not_answer_says_where_and_what_next(dashboard: FakeDashboard) -> None:
    dashboard.down = True
    with pytest.raises(BackendUnavailable, match="Connection refused") as caught:
        ExistingRayBackend().place(spec(config()))
    assert caught.value.where == f"{ELSEWHERE} (backend.address)"
    assert caught.value.next


def test_something_else_at_the_address_is_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_api, "urlopen", lambda request, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(BackendUnavailable, match="not a Ray dashboard"):
        ExistingRayBackend().place(spec(config()))


def test_a_dashboard_behind_a_path_is_asked_there(dashboard: FakeDashboard) -> None:
    assert ExistingRayBackend().place(spec(config("https://proxy.example/prefix/"))).fits
    assert dashboard.asked[0].full_url == "https://proxy.example/prefix/api/version"


# the job


def test_a_job_holds_what_the_supervisor_needs_and_no_secret(
    dashboard: FakeDashboard, run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-k3y")
    ExistingRayBackend().launch(spec(config()), run)
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
    ExistingRayBackend().launch(spec(config()), run)
    ExistingRayBackend().launch(spec(config()), run)
    assert list(dashboard.jobs) == ["mlp-abcdef"]


def test_a_job_of_that_id_of_somebody_else_is_not_taken_for_ours(dashboard: FakeDashboard, run: RunStore) -> None:
    dashboard.jobs["mlp-abcdef"] = {"status": "RUNNING", "metadata": {}}
    with pytest.raises(BackendUnavailable) as caught:
        ExistingRayBackend().launch(spec(config()), run)
    assert "already exists" in caught.value.given


def test_a_resume_is_a_job_of_its_own_and_the_one_that_is_looked_at(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = ExistingRayBackend()
    backend.launch(spec(config()), run)
    take_office(run, 1)
    dashboard.jobs["mlp-abcdef"]["status"] = "FAILED"
    assert backend.owner(run) is Owner.GONE
    wish(run, 2, resumes=1)
    backend.launch(spec(config()), run)
    assert sorted(dashboard.jobs) == ["mlp-abcdef", "mlp-abcdef-2"]
    assert backend.owner(run) is Owner.ALIVE
    wish(run, 3, resumes=1)  # a resize leaves the job as it is
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
    assert ExistingRayBackend().owner(run) is owner


def test_a_job_that_the_cluster_does_not_know_may_be_on_its_way_or_is_gone(run: RunStore) -> None:
    backend = ExistingRayBackend()
    assert backend.owner(run) is Owner.UNKNOWN, "it is being submitted"
    take_office(run, 1)
    assert backend.owner(run) is Owner.GONE
    wish(run, 2, resumes=1)
    assert backend.owner(run) is Owner.UNKNOWN, "it is being submitted again"


def test_a_proxy_without_its_cluster_knows_nothing_of_jobs(dashboard: FakeDashboard, run: RunStore) -> None:
    take_office(run, 1)
    dashboard.behind_proxy = True
    assert ExistingRayBackend().owner(run) is Owner.UNKNOWN


def test_a_tunnel_may_lead_to_another_cluster(run: RunStore) -> None:
    run.store.put(run.key("spec-1.json"), json.dumps(spec(config(HERE)).to_json()).encode())
    take_office(run, 1)
    assert ExistingRayBackend().owner(run) is Owner.UNKNOWN


def test_what_cannot_be_reached_is_not_known(dashboard: FakeDashboard, run: RunStore, tmp_path: Path) -> None:
    dashboard.down = True
    backend = ExistingRayBackend()
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
    backend = ExistingRayBackend()
    assert "no job of this run" in backend.reason_pending(run)
    backend.launch(spec(config()), run)
    assert "Job has not started yet." in backend.reason_pending(run)
    dashboard.jobs["mlp-abcdef"]["status"] = "RUNNING"
    assert backend.reason_pending(run) == "the controller is starting"


def test_last_words_are_the_end_of_the_log_or_what_ray_says(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = ExistingRayBackend()
    dashboard.jobs["mlp-abcdef"] = {"status": "FAILED", "message": "no agent"}
    assert backend.last_words(run) == "no agent"
    dashboard.log = "x" * 5000 + "No module named launcher\n"
    assert backend.last_words(run).endswith("No module named launcher")
    assert len(backend.last_words(run)) == existing_ray.LAST_WORDS


def test_removing_stops_the_job_and_is_content_without_one(dashboard: FakeDashboard, run: RunStore) -> None:
    backend = ExistingRayBackend()
    assert backend.remove(run) == ""
    backend.launch(spec(config()), run)
    assert backend.remove(run) == ""
    assert dashboard.jobs["mlp-abcdef"]["status"] == "STOPPED"


def test_the_dashboard_is_the_address_and_where_its_token_lies(run: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    page = ExistingRayBackend().dashboard(run)
    assert page is not None
    assert (page.url, page.token_file) == (ELSEWHERE, str(tmp_path / "token"))


# before the first job


def results(config: JobConfig) -> dict[str, Result]:
    return {finding.name: finding.result for finding in ExistingRayBackend().examine(config)}


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
    (finding,) = [finding for finding in ExistingRayBackend().examine(config()) if finding.result is Result.FAILED]
    assert "No module named 'launcher'" in finding.found
    assert dashboard.jobs == {}


def test_a_probe_that_does_not_end_is_stopped(dashboard: FakeDashboard) -> None:
    api = ray_api.RayApi(RayConfig(address=ELSEWHERE))
    (finding,) = existing_ray_checks.probe(api, config(), ManualClock())
    assert "PENDING" in finding.found
    assert dashboard.jobs == {}


def test_a_probe_that_is_interrupted_leaves_nothing(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(existing_ray_checks.probe(ray_api.RayApi(RayConfig(address=ELSEWHERE)), config(), clock))
    assert dashboard.jobs == {}


def test_a_probe_whose_submission_had_no_answer_is_stopped_before_it_is_forgotten(dashboard: FakeDashboard) -> None:
    dashboard.lose_answers = 1
    (finding,) = existing_ray_checks.probe(ray_api.RayApi(RayConfig(address=ELSEWHERE)), config(), ManualClock())
    assert finding.result is Result.FAILED
    assert [request.selector.rpartition("/")[2] for request in dashboard.asked if request.get_method() == "POST"] == ["", "stop"]
    assert dashboard.jobs == {}


def test_a_spec_comes_back_as_it_was_written() -> None:
    made = spec(replace(config(token_file="~/token"), name="digits"))
    assert JobSpec.from_json(json.loads(json.dumps(made.to_json()))) == made
