"""The door to the `kubernetes` package, against an API server on loopback that answers what it is told to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kuberay import job_api
from launcher.backends.kuberay.checks_api import ChecksApi
from launcher.backends.kuberay.kubernetes_api import Forbidden, NoAnswer
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import BackendUnavailable, NameTaken

pytestmark = pytest.mark.distributed
RAYJOBS = "/apis/ray.io/v1/namespaces/team/rayjobs"
JOB = {"kind": "RayJob", "metadata": {"name": "mlp-abcdef", "annotations": {"launcher/runs": "s3://bucket"}}}


@dataclass
class FakeServer:
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Method and path -> code and document; anything else is answered by 404."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method, and path with query."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Names in lower case."""
    bodies: list[Any] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            fake.asked.append((self.command, self.path))
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            length = int(self.headers.get("Content-Length") or 0)
            fake.bodies.append(json.loads(self.rfile.read(length)) if length else None)
            code, document = fake.answers.get(f"{self.command} {self.path.partition('?')[0]}", (404, {"message": "not found"}))
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{listening.server_address[1]}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    (tmp_path / "config").write_text(json.dumps(kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.setattr(job_api, "CREATE_PACE_S", 0.0)
    yield fake
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def api(server: FakeServer) -> ChecksApi:
    return ChecksApi(KubeRayConfig(image="launcher"))


def test_the_namespace_is_the_contexts_and_a_call_brings_the_persons_token(server: FakeServer, api: ChecksApi) -> None:
    server.answers[f"GET {RAYJOBS}"] = (200, {"items": []})
    api.check()
    assert (api.context, api.namespace) == ("test", "team")
    assert server.asked == [("GET", f"{RAYJOBS}?limit=1")]
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_a_rayjob_is_made_found_and_deleted(server: FakeServer, api: ChecksApi) -> None:
    made = {**JOB, "metadata": {**JOB["metadata"], "uid": "1"}, "status": {"jobDeploymentStatus": "Running", "message": None}}
    server.answers = {f"POST {RAYJOBS}": (201, made), f"GET {RAYJOBS}/mlp-abcdef": (200, made), f"DELETE {RAYJOBS}/mlp-abcdef": (200, {})}
    assert api.create(JOB).metadata.uid == "1"
    assert server.bodies == [JOB]
    found = api.find("mlp-abcdef")
    assert found is not None
    assert (found.status.job_deployment_status, found.status.message) == ("Running", "")
    api.delete("mlp-abcdef")
    assert server.asked[-1] == ("DELETE", f"{RAYJOBS}/mlp-abcdef")
    assert api.find("another") is None
    api.delete("another")


def test_a_rayjob_that_is_there_is_ours_by_its_annotations(server: FakeServer, api: ChecksApi) -> None:
    server.answers = {f"POST {RAYJOBS}": (409, {"message": "already exists"}), f"GET {RAYJOBS}/mlp-abcdef": (200, JOB)}
    assert api.create(JOB).metadata.name == "mlp-abcdef"
    server.answers[f"GET {RAYJOBS}/mlp-abcdef"] = (200, {"metadata": {"name": "mlp-abcdef"}})
    with pytest.raises(NameTaken):
        api.create(JOB)


def test_a_companion_that_is_there_gets_its_new_owner(server: FakeServer, api: ChecksApi) -> None:
    accounts = "/api/v1/namespaces/team/serviceaccounts"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mlp-abcdef"}}
    server.answers = {f"POST {accounts}": (409, {"message": "already exists"}), f"PATCH {accounts}/mlp-abcdef": (200, account)}
    api.apply_companion(account)
    assert [method for method, _ in server.asked] == ["POST", "PATCH"]
    assert server.bodies[1]["metadata"] == {"name": "mlp-abcdef"}


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (401, BackendUnavailable, "does not accept the credentials of context test, to list RayJobs"),
        (403, Forbidden, "does not let this account list RayJobs"),
        (404, BackendUnavailable, "has nothing by which to list RayJobs"),
        (500, BackendUnavailable, "refuses to list RayJobs"),
    ],
)
def test_a_refusal_says_what_was_refused(server: FakeServer, api: ChecksApi, code: int, kind: type[BackendUnavailable], says: str) -> None:
    server.answers[f"GET {RAYJOBS}"] = (code, {"message": "in the server's words"})
    with pytest.raises(kind, match=says) as refused:
        api.check()
    assert refused.value.given == ("" if code == 404 else "in the server's words")


def test_what_is_no_api_server_is_said_to_be_none(server: FakeServer, api: ChecksApi) -> None:
    for answer in (b"<html>", b'{"items": 1}'):
        server.answers["GET /api/v1/nodes"] = server.answers["GET /api/v1/namespaces/team/pods"] = (200, answer)
        assert api.gpus_of_nodes("nvidia.com/gpu", {}) is None
        with pytest.raises(BackendUnavailable, match="not a Kubernetes API server"):
            api.pods("a=b")


def test_no_answer_is_told_apart_from_a_refusal(
    tmp_path: Path, server: FakeServer, api: ChecksApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        from urllib3.exceptions import ProtocolError

        raise ProtocolError("reset")

    monkeypatch.setattr(api._custom, "create_namespaced_custom_object", broken)
    with pytest.raises(NoAnswer, match="does not answer, to create the RayJob"):
        api.create(JOB)


def test_the_refusal_of_a_document_is_asked_for_without_writing_it(server: FakeServer, api: ChecksApi) -> None:
    server.answers[f"POST {RAYJOBS}"] = (400, {"message": 'unknown field "spec.x"'})
    assert api.refusal(JOB) == 'unknown field "spec.x"'
    ((method, path),) = server.asked
    assert (method, path.partition("?")[0]) == ("POST", RAYJOBS)
    assert {"dryRun=All", "fieldValidation=Strict"} <= set(path.partition("?")[2].split("&"))


def test_gpus_are_those_of_nodes_that_take_pods(server: FakeServer, api: ChecksApi) -> None:
    nodes = [
        {"spec": {}, "status": {"allocatable": {"nvidia.com/gpu": "4", "cpu": "8"}}},
        {"spec": {"unschedulable": True}, "status": {"allocatable": {"nvidia.com/gpu": "4"}}},
        {"status": {"allocatable": {"cpu": "8"}}},
    ]
    server.answers["GET /api/v1/nodes"] = (200, {"items": nodes})
    assert api.gpus_of_nodes("nvidia.com/gpu", {"zone": "a"}) == [4, 0]
    assert server.asked[0][1] == "/api/v1/nodes?labelSelector=zone%3Da"


def test_warnings_are_the_newest_of_their_kind(server: FakeServer, api: ChecksApi) -> None:
    def event(name: str, reason: str, time: str | None, message: str, kind: str = "Pod") -> dict[str, Any]:
        return {"involvedObject": {"kind": kind, "name": name}, "reason": reason, "lastTimestamp": time, "message": message}

    server.answers["GET /api/v1/namespaces/team/events"] = (
        200,
        {
            "items": [
                event("mlp-abcdef-head", "Failed", "2026-01-01T00:00:02Z", "second\n"),
                event("mlp-abcdef-head", "Failed", "2026-01-01T00:00:01Z", "first"),
                event("mlp-abcdef", "Quota", None, "quota", kind="RayJob"),
                event("another", "Failed", "2026-01-01T00:00:03Z", "not ours"),
            ]
        },
    )
    assert api.warnings("mlp-abcdef") == ["second", "quota"]


def test_a_secret_is_read_whole_for_its_token_and_without_its_values_for_a_check(server: FakeServer, api: ChecksApi) -> None:
    path = "/api/v1/namespaces/team/secrets/keys"
    server.answers[f"GET {path}"] = (200, {"metadata": {"name": "keys"}, "data": {"auth_token": base64.b64encode(b"t0k3n").decode()}})
    assert api.secret_value("keys", "auth_token") == "t0k3n"
    assert api.secret_exists("keys")
    assert "PartialObjectMetadata" in server.headers[-1]["accept"]
    assert not api.secret_exists("others")


def test_what_the_checks_ask(server: FakeServer, api: ChecksApi) -> None:
    deployment = {
        "metadata": {"name": "kuberay-operator", "namespace": "kuberay", "uid": "1"},
        "spec": {"template": {"spec": {"containers": [{"name": "operator", "image": "operator:v1.6.2"}]}}},
        "status": {"availableReplicas": 1},
    }
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    definition = {"spec": {"versions": [{"name": "v1", "served": True, "schema": {"openAPIV3Schema": {"properties": {"spec": {}}}}}]}}
    server.answers = {
        "GET /version/": (200, {"gitVersion": "v1.36.3"}),
        "GET /api/v1/namespaces/team": (200, {"metadata": {"name": "team"}}),
        f"POST {reviews}": (201, {"status": {"allowed": True}}),
        "GET /apis/ray.io/v1": (200, {"resources": [{"name": "rayjobs"}, {"name": "rayclusters"}]}),
        "GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io": (200, definition),
        "GET /apis/apps/v1/deployments": (200, {"items": [deployment]}),
    }
    assert api.server_version() == "v1.36.3"
    assert api.namespace_exists()
    assert api.allows("get", "", "services", "proxy")
    assert server.bodies[-1]["spec"]["resourceAttributes"] == {
        "namespace": "team",
        "verb": "get",
        "group": "",
        "resource": "services",
        "subresource": "proxy",
    }
    assert api.served() == ("rayjobs", "rayclusters")
    (version,) = api.definition("rayjobs.ray.io").spec.versions
    assert version.schema.open_api.has("spec")
    (operator,) = api.operators()
    assert (operator.metadata.namespace, operator.status.available_replicas) == ("kuberay", 1)
    del server.answers["GET /apis/ray.io/v1"]
    assert api.served() == ()


def test_the_probes_pod_is_made_looked_at_and_deleted_at_once(server: FakeServer, api: ChecksApi) -> None:
    pods = "/api/v1/namespaces/team/pods"
    pod = {"metadata": {"name": "probe"}, "status": {"phase": "Pending"}}
    server.answers = {f"POST {pods}": (201, pod), f"GET {pods}/probe": (200, pod), f"DELETE {pods}/probe": (200, pod)}
    api.create_pod({"apiVersion": "v1", "kind": "Pod", **pod})
    found = api.find_pod("probe")
    assert found is not None
    assert found.status.phase == "Pending"
    api.delete_pod("probe")
    assert server.asked[-1] == ("DELETE", f"{pods}/probe?gracePeriodSeconds=0")
    assert api.find_pod("another") is None


def test_a_page_behind_a_service_is_asked_with_both_tokens(server: FakeServer, api: ChecksApi) -> None:
    path = "/api/v1/namespaces/team/services/head:8265/proxy/api/version"
    server.answers[f"GET {path}"] = (200, {"ray_version": "2.60.0"})
    page = api.through_proxy("head", 8265, "t0k3n", "GET", "/api/version", {"Accept": "application/json"}, None)
    assert (page.status, json.loads(page.data)) == (200, {"ray_version": "2.60.0"})
    assert (server.headers[0]["authorization"], server.headers[0]["x-ray-authorization"]) == ("Bearer secret", "Bearer t0k3n")
