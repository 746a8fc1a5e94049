"""Where the token of a Ray cluster comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.backends.ray_cluster.token import read_token
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.unit


def test_the_token_comes_from_the_file_then_the_environment_then_rays_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token(None) is None
    (tmp_path / ".ray").mkdir()
    for name, text in ((".ray/auth_token", "one\n"), ("two", "two\n"), ("four", " four\n")):
        (tmp_path / name).write_text(text)
    found = []
    found.append(read_token(None))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "two"))
    found.append(read_token(None))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "three")
    found.append(read_token(None))
    found.append(read_token("~/four"))
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
            read_token(str(tmp_path / name))
        assert (caught.value.where, caught.value.given) == ("backend.token_file", str(tmp_path / name))
        assert "lines" not in str(caught.value)
