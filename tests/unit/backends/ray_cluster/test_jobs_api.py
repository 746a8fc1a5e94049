"""What is sent to a Ray dashboard, with which token, and what is made of its answers."""

from __future__ import annotations

import io

import pytest

from launcher.backends.ray_cluster import jobs_api
from launcher.backends.ray_cluster.backend import RayClusterBackend
from launcher.core.errors import BackendUnavailable
from tests.unit.backends.ray_cluster.fake_dashboard import ELSEWHERE, TOKEN, FakeDashboard, config, spec

pytestmark = pytest.mark.unit


def test_a_token_is_sent_and_not_passed_on_to_where_the_address_points(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert RayClusterBackend().place(spec(config())).fits
    assert all("Authorization" not in request.headers for request in dashboard.asked), "urllib passes on what is in headers"


@pytest.mark.parametrize("given", [None, "wrong"])
def test_a_token_that_is_missing_or_wrong_is_said_to_be_so(
    dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    dashboard.token = TOKEN
    if given:
        monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    with pytest.raises(BackendUnavailable, match="refuses the token" if given else "asks for a token") as caught:
        RayClusterBackend().place(spec(config()))
    assert "backend.token_file" in caught.value.next
    assert ("RAY_AUTH_TOKEN" if given else "no token") in caught.value.given
    assert "wrong" not in str(caught.value)


def test_a_cluster_that_does_not_answer_says_where_and_what_next(dashboard: FakeDashboard) -> None:
    dashboard.down = True
    with pytest.raises(BackendUnavailable, match="Connection refused") as caught:
        RayClusterBackend().place(spec(config()))
    assert caught.value.where == f"{ELSEWHERE} (backend.address)"
    assert caught.value.next


def test_something_else_at_the_address_is_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "urlopen", lambda request, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(BackendUnavailable, match="not a Ray dashboard"):
        RayClusterBackend().place(spec(config()))


def test_a_dashboard_behind_a_path_is_asked_there(dashboard: FakeDashboard) -> None:
    assert RayClusterBackend().place(spec(config("https://proxy.example/prefix/"))).fits
    assert dashboard.asked[0].full_url == "https://proxy.example/prefix/api/version"


def test_another_version_of_ray_is_refused(dashboard: FakeDashboard) -> None:
    dashboard.ray = "2.1.0"
    with pytest.raises(BackendUnavailable, match="another version") as caught:
        RayClusterBackend().place(spec(config()))
    assert "2.1.0" in caught.value.given
    assert "ray==2.1.0" in caught.value.next
