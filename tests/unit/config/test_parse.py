import json
import math
from datetime import date

import pytest

from launcher.config.parse import dump_config, is_mapping, parse_config, parse_workers, values_of
from launcher.core.errors import ConfigError
from launcher.record.desired import WorkerBounds

pytestmark = pytest.mark.unit
MINIMAL = {
    "workers": 2,
    **{group: {"_target_": f"my.{group.title()}", "size": 3} for group in ("model", "data", "task", "optimizer")},
    "trainer": {"steps": 5},
    **{group: {} for group in ("elastic", "resources", "checkpoint", "backend", "tracking", "code")},
}


def changed(key: str, value: object) -> dict[str, object]:
    group, _, name = key.partition(".")
    return {**MINIMAL, group: {**MINIMAL[group], name: value} if name else value}


def test_a_configuration_survives_being_written_and_read() -> None:
    environment = {"A": "=\n\u00e9", "B": None, "C": "", "D_KEY": {"secret": "team/d"}}
    changes = {"scheduler": {"_target_": "a.b", "T_max": "total_steps"}, "code": {"allow": ["x.pem"]}, "environment": environment}
    config = parse_config({**MINIMAL, **changes})
    assert parse_config(dump_config(config)) == config


def test_a_tuple_is_the_list_that_json_reads_back() -> None:
    config = parse_config(changed("model.sizes", (1, (2, 3))))
    assert parse_config(json.loads(json.dumps(dump_config(config)))) == config


@pytest.mark.parametrize("scheduler", [None, {"_target_": None}])
def test_no_scheduler_is_none(scheduler: object) -> None:
    assert parse_config({**MINIMAL, "scheduler": scheduler}).scheduler is None


def test_arguments_for_no_scheduler_are_refused() -> None:
    with pytest.raises(ConfigError, match="what to build"):
        parse_config({**MINIMAL, "scheduler": {"_target_": None, "T_max": 3}})


@pytest.mark.parametrize(("value", "bounds"), [(2, (2, 2, 2)), ("1..4", (1, 4, 4)), ({"min": 1, "max": 3, "target": 2}, (1, 3, 2))])
def test_workers_are_a_number_or_bounds(value: object, bounds: tuple[int, int, int]) -> None:
    low, high, target = bounds
    assert parse_workers(value) == WorkerBounds(min=low, max=high, target=target)


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("workers", "four", "workers"),
        ("workers", True, "workers"),
        ("workers", "3..1", "workers"),
        ("workers", 0, "workers"),
        ("trainer.steps", 1.5, "trainer.steps"),
        ("trainer.steps", True, "trainer.steps"),
        ("trainer.steps", "5", "trainer.steps"),
        ("trainer.precision", "fp16", "trainer.precision"),
        ("trainer.step", 5, "trainer.step"),
        ("trainer.epochs", 3, "trainer.steps, trainer.epochs"),
        ("trainer.micro_batch_size", 5, "trainer.micro_batch_size"),
        ("model._target_", None, "model._target_"),
        ("model._target_", "resnet", "model._target_"),
        ("model", None, "model"),
        ("elastic.exact", 1, "elastic.exact"),
        ("code.allow", "x", "code.allow"),
        ("seed", -1, "seed"),
        ("trainer.epochs", 10**400, "trainer.epochs"),
        ("model.when", date(2026, 1, 1), "model.when"),
        ("model.names", {"a", "b"}, "model.names"),
        ("model.sizes", (1, (2, math.inf)), "model.sizes.1.1"),
        ("name", "A b", "name"),
        ("runs", "", "runs"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(key: str, value: object, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(key, value))
    assert caught.value.where == where
    assert caught.value.exit_code == 2


def test_divisors_are_named_for_a_batch_that_cannot_be_cut() -> None:
    with pytest.raises(ConfigError, match="1, 2, 4, 8, 16, 32, 64"):
        parse_config(changed("trainer.micro_batch_size", 7))
    huge = {**MINIMAL, "trainer": {"steps": 5, "global_batch_size": 10**12, "micro_batch_size": 7}}
    with pytest.raises(ConfigError, match="1, 2, 4, 5, 8, 10, 16"):
        parse_config(huge)


def test_the_way_out_is_named_for_more_workers_than_shards() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed("workers", 9))
    assert "trainer.micro_batch_size=4" in caught.value.next
    assert parse_config({**changed("workers", 9), "trainer": {"steps": 5, "micro_batch_size": 4}}).shards == 16


def test_values_that_can_be_counted_are_known() -> None:
    assert values_of("trainer.precision") == ("fp32", "bf16")
    assert values_of("elastic.exact") == ("true", "false")
    assert values_of("trainer.steps") == values_of("trainer.nothing") == values_of("nothing.at.all") == ()


def test_keys_under_which_a_person_writes_keys_are_known() -> None:
    assert is_mapping("backend.overlay")
    assert is_mapping("backend.node_selector")
    assert is_mapping("environment")
    assert not any(map(is_mapping, ["backend", "backend.cpu", "model", "model.params", "trainer.steps", "nothing.at.all"]))
