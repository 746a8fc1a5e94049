"""A Ray dashboard that answers from memory, and a run to start on its cluster."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from email.message import Message
from importlib.metadata import version
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from launcher.config.schema import JobConfig
from launcher.core.types import RunId, Step, Term
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from tests.support.fakes import job_config

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


def config(address: str = ELSEWHERE, runs: str = "s3://bucket/runs", token_file: str | None = None, **changes: Any) -> JobConfig:
    return job_config(runs, backend={"name": "ray", "address": address, "token_file": token_file}, **changes)


def spec(config: JobConfig) -> JobSpec:
    return JobSpec(run_id=RunId("mlp-abcdef"), name="digits", config=config, code=CodeRef(digest="0"), versions={}, submitted_at="")


def desire(run: RunStore, revision: int, resumes: int | None = None) -> None:
    bounds = WorkerBounds(min=1, max=1, target=1)
    wanted = Desired(
        revision=revision, state="running", spec=1, workers=bounds, by="", at="", resumes=None if resumes is None else Term(resumes)
    )
    assert run.create_desired(wanted)


def take_over(run: RunStore, term: int) -> None:
    assert run.claim_just(Term(term), "a controller", "")
    assert run.create_base(Term(term), TermBase(from_term=None, checkpoint_step=None, adopted_step=Step(0)))
