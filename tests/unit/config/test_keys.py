"""The bound of a number is part of its type, and is kept wherever a configuration is made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.config.keys import bound_of, hints_of
from launcher.config.schema import CheckpointConfig, ElasticConfig, JobConfig, ResourcesConfig, TrainerConfig
from launcher.core.errors import ConfigError
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
GROUPS = {"trainer": TrainerConfig, "elastic": ElasticConfig, "resources": ResourcesConfig, "checkpoint": CheckpointConfig}
BOUNDED = [
    (group, name)
    for group, kind in GROUPS.items()
    for name, hint in hints_of(kind).items()
    if (bound := bound_of(hint)) is not None and bound.words == "more than 0"
]


def test_what_has_to_be_positive_says_so() -> None:
    assert {name for group, name in BOUNDED if group == "trainer"} == {
        "steps",
        "epochs",
        "global_batch_size",
        "micro_batch_size",
        "grad_clip_norm",
        "eval_every_steps",
        "log_every_steps",
    }
    assert {name for group, name in BOUNDED if group == "elastic"} == {"horizon_s", "capacity_timeout_s", "silence_s", "hang_s", "drain_s"}
    assert {name for group, name in BOUNDED if group not in ("trainer", "elastic")} == {"threads", "every_steps", "keep"}
    assert [name for name, hint in hints_of(JobConfig).items() if bound_of(hint) is not None] == ["seed", "gpu"]


@pytest.mark.parametrize(("group", "name"), BOUNDED)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_number_outside_its_bound_is_named(group: str, name: str, value: float) -> None:
    config = job_config("runs")
    changes: dict[str, object] = {name: value, **({"epochs": None} if name == "steps" else {})}
    with pytest.raises(ConfigError) as caught:
        replace(config, **{group: replace(getattr(config, group), **changes)})
    assert (caught.value.where, caught.value.expected) == (f"{group}.{name}", "more than 0")


@pytest.mark.parametrize("name", ["seed", "gpu"])
def test_nothing_is_a_number_where_0_is_allowed(name: str) -> None:
    assert getattr(job_config("runs", **{name: 0}), name) == 0
    with pytest.raises(ConfigError) as caught:
        job_config("runs", **{name: -1})
    assert (caught.value.where, caught.value.expected) == (name, "0 or more")


def test_no_process_that_reads_is_a_number_of_them() -> None:
    assert ResourcesConfig(data_workers=0).data_workers == 0
    with pytest.raises(ConfigError) as caught:
        replace(job_config("runs"), resources=ResourcesConfig(data_workers=-1))
    assert (caught.value.where, caught.value.expected) == ("resources.data_workers", "0 or more")
