from __future__ import annotations

import json

import pytest

from launcher.core.errors import ConfigError, StoreDamaged
from launcher.core.types import JsonObject, RunId
from launcher.jobspec.job import CodeRef, JobSpec
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
SPEC = JobSpec(
    run_id=RunId("r1"),
    name="one",
    number=2,
    config=job_config("runs"),
    code=CodeRef(digest="ab", git_commit="c0", git_dirty=True),
    versions={"python": "3.11.9"},
    submitted_at="2026-11-25T10:00:00Z",
)


def stored(**changes: object) -> JsonObject:
    document: JsonObject = json.loads(json.dumps({**SPEC.to_json(), **changes}))
    return document


def test_a_job_survives_being_written_and_read() -> None:
    assert JobSpec.from_json(stored()) == SPEC


@pytest.mark.parametrize("document", [stored(version=2), stored(version=None), {}, None, []])
def test_a_job_of_another_version_is_refused(document: object) -> None:
    with pytest.raises(ConfigError, match="another version of launcher"):
        JobSpec.from_json(document)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"number": "2"}, "$.number"),
        ({"code": {"git_dirty": False}}, "$.code"),
        ({"versions": ["3.11"]}, "$.versions"),
        ({"config": 3}, "$.config"),
    ],
)
def test_a_part_that_does_not_fit_is_named(changes: dict[str, object], where: str) -> None:
    with pytest.raises(StoreDamaged) as caught:
        JobSpec.from_json(stored(**changes))
    assert caught.value.where == f"spec, {where}"


def test_a_key_of_the_configuration_that_does_not_hold_is_named() -> None:
    config = SPEC.to_json()["config"]
    assert isinstance(config, dict)
    with pytest.raises(ConfigError) as caught:
        JobSpec.from_json(stored(config={**config, "seed": -1}))
    assert caught.value.where == "seed"
