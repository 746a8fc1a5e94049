"""The variables of the job in the controller's own process, and those that it gives its workers by call."""

from __future__ import annotations

import os

import pytest

from launcher.core.errors import ConfigError
from launcher.runtime.controller.__main__ import take_variables
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit


def test_a_controller_has_the_jobs_variables_and_hands_its_secrets_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TEAM_TOKEN": "s3cr3t", "AWS_REGION": "here", "PATH": "/bin", "OTHER": "1"})
    variables = {"DATA_ROOT": "/a", "PATH": "/opt:/bin", "HF_TOKEN": {"secret": "TEAM_TOKEN"}}
    given = take_variables(job_config("/runs", environment=variables))
    assert given == {"AWS_REGION": "here", "HF_TOKEN": "s3cr3t"}
    assert os.environ.items() >= {"DATA_ROOT": "/a", "PATH": "/opt:/bin", "HF_TOKEN": "s3cr3t", "OTHER": "1"}.items()


def test_without_its_secret_a_job_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    with pytest.raises(ConfigError, match="a secret of the job"):
        take_variables(job_config("/runs", environment={"DATA_ROOT": "/a", "HF_TOKEN": {"secret": "TEAM_TOKEN"}}))
    assert os.environ == {}
