"""The calls to a Ray cluster's dashboard that a job needs, as plain HTTP: importing Ray's own client takes seconds.

Answers are parsed here into the structs below, which hold only what is looked at. An answer of another form comes from something that is
no Ray dashboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from importlib.metadata import version
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import msgspec

from launcher.backends.ray_cluster.token import read_token
from launcher.config.schema import RayConfig
from launcher.core.clock import Clock
from launcher.core.errors import BackendUnavailable
from launcher.core.types import JsonObject

T = TypeVar("T")

OVER = ("STOPPED", "SUCCEEDED", "FAILED")
"""Statuses of a Ray job after which nothing of it works any more."""
POLL_S = 0.25
STOPPED_S = 20.0
"""How long to wait for a job's end; Ray kills it three seconds after it was asked to stop."""
TIMEOUT_S = 5.0
"""For an answer; owners are asked several times a second, so a cluster that is down must not hold a reader for long."""
SUBMIT_TIMEOUT_S = 60.0
"""For the answer to a submission: the first job on a cluster waits until the agent there has connected to Ray."""
MOST_NODES = 10_000
"""The dashboard lists no more at once."""


class RayJob(msgspec.Struct, frozen=True):
    """Ray's account of a job (JobDetails in the dashboard's API)."""

    status: str
    """PENDING, RUNNING, or one of OVER."""
    message: str | None = None
    metadata: dict[str, str] | None = None


class _Version(msgspec.Struct, frozen=True):
    ray_version: str


class _Log(msgspec.Struct, frozen=True):
    logs: str


class _Accepted(msgspec.Struct, frozen=True):
    """The answer to a request of which only matters that it was accepted."""


class _NodeResources(msgspec.Struct, frozen=True):
    gpu: float = msgspec.field(default=0, name="GPU")


class _Node(msgspec.Struct, frozen=True):
    resources_total: _NodeResources


class _NodePage(msgspec.Struct, frozen=True):
    result: list[_Node]


class _NodeData(msgspec.Struct, frozen=True):
    result: _NodePage


class _Nodes(msgspec.Struct, frozen=True):
    data: _NodeData


class RayApi:
    """One cluster. Every failed call is a BackendUnavailable that says what to do; a token file without a token is a ConfigError."""

    def __init__(self, backend: RayConfig) -> None:
        self.address = backend.address.rstrip("/")
        self.token = read_token(backend.token_file)

    def version(self) -> str:
        return self._call("GET", "/api/version", "say its version", _Version).ray_version

    def refuse_other_versions(self) -> None:
        theirs, ours = self.version(), version("ray")
        if theirs != ours:
            raise BackendUnavailable(
                "the cluster has another version of Ray than this launcher",
                where=self._where,
                given=f"ray {theirs}",
                expected=f"ray {ours}",
                next=f"install ray=={theirs} here, or start the cluster with ray=={ours}",
            )

    def gpus(self) -> list[int]:
        """How many each living node has, nodes without any included."""
        query = {"detail": 1, "limit": MOST_NODES, "filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"}
        listed = self._call("GET", f"/api/v0/nodes?{urlencode(query)}", "list its nodes", _Nodes)
        return [int(node.resources_total.gpu) for node in listed.data.result.result]

    def job(self, submission: str) -> RayJob | None:
        """None where the cluster does not know the job."""
        try:
            return self._call("GET", _path(submission), "tell of the job", RayJob)
        except Missing:
            self.version()  # a proxy whose cluster is down answers 404 as well: only a Ray can say that there is no such job
            return None

    def log(self, submission: str) -> str:
        """What the job printed; "" where the cluster does not know it."""
        try:
            return self._call("GET", f"{_path(submission)}/logs", "show the job's log", _Log).logs
        except Missing:
            return ""

    def submit(self, submission: str, entrypoint: str, metadata: Mapping[str, str]) -> None:
        request: JsonObject = {
            "entrypoint": entrypoint,
            "submission_id": submission,
            "metadata": {**metadata},
            "entrypoint_num_cpus": 0,
        }
        self._call("POST", "/api/jobs/", "take the job", _Accepted, request, timeout_s=SUBMIT_TIMEOUT_S)

    def stop(self, submission: str) -> None:
        """Ask for its end; a job that is over or not known is left as it is."""
        try:
            self._call("POST", f"{_path(submission)}/stop", "stop the job", _Accepted, {})
        except Missing:
            return

    def end(self, submission: str, clock: Clock) -> str:
        """Stop a job and wait until it is over, for at most STOPPED_S; says what it is doing where it goes on, or ""."""
        self.stop(submission)
        deadline = clock.monotonic() + STOPPED_S
        while (job := self.job(submission)) is not None and job.status not in OVER:
            if clock.monotonic() >= deadline:
                return f"it is still {job.status}"
            clock.sleep(POLL_S)
        return ""

    def delete(self, submission: str) -> None:
        """Make Ray forget a job that is over; one that it does not know is left as it is."""
        try:
            self._call("DELETE", _path(submission), "forget the job", _Accepted)
        except Missing:
            return

    @property
    def _where(self) -> str:
        return f"{self.address} (backend.address)"

    def _call(self, method: str, path: str, what: str, kind: type[T], body: JsonObject | None = None, *, timeout_s: float = TIMEOUT_S) -> T:
        """The answer as a `kind`. `what`: the request in words, as in "the cluster fails to ..."."""
        data = msgspec.json.encode(body) if body is not None else None
        request = Request(self.address + path, data=data, method=method, headers={"Content-Type": "application/json"})
        if self.token is not None:
            # Unredirected: a redirect to another host does not get the token.
            request.add_unredirected_header("Authorization", f"Bearer {self.token.value}")
        try:
            with urlopen(request, timeout=timeout_s) as answer:
                text = answer.read()
        except HTTPError as error:
            raise self._refusal(error, what) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise BackendUnavailable(
                f"no Ray cluster answers: {getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__}",
                where=self._where,
                expected="the dashboard of a cluster that is up, as in http://HOST:8265",
                next="start the cluster or the tunnel to it, or correct backend.address",
            ) from error
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError:
            raise self._no_dashboard() from None

    def _refusal(self, error: HTTPError, what: str) -> BackendUnavailable:
        with error:
            said = error.read().decode(errors="replace").strip()
        if error.code in (401, 403):
            return self._refused_token(error.code)
        if error.code == 404:
            return Missing(
                f"nothing at this address can {what}",
                where=self._where,
                expected="the dashboard of a Ray cluster, as in http://HOST:8265",
            )
        # Ray answers with a traceback, whose last line names the cause.
        last = next((line for line in reversed(said.splitlines()) if len(line) > 1), "")
        return BackendUnavailable(
            f"the Ray cluster fails to {what}",
            where=self._where,
            given=f"{error.code} {error.reason}: {last[:400]}".rstrip(": "),
            next="look into the dashboard's log on the head of the cluster, then try again",
        )

    def _refused_token(self, code: int) -> BackendUnavailable:
        return BackendUnavailable(
            "the Ray cluster asks for a token" if self.token is None else "the Ray cluster refuses the token",
            where=self._where,
            given=f"{'no token' if self.token is None else 'the token of ' + self.token.source} (answer {code})",
            expected="the token that the cluster was started with",
            next="set backend.token_file to a file that holds it, or RAY_AUTH_TOKEN",
        )

    def _no_dashboard(self) -> BackendUnavailable:
        return BackendUnavailable(
            "what answers there is not a Ray dashboard",
            where=self._where,
            expected="the dashboard of a Ray cluster, as in http://HOST:8265",
        )


class Missing(BackendUnavailable):
    """Answer 404: the cluster does not know the job, or the address leads to something else."""


def _path(submission: str) -> str:
    return f"/api/jobs/{quote(submission, safe='')}"
