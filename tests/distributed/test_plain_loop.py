"""Ordinary models come out as a plain loop over whole batches makes them, with one, two and three workers, and over a resize."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from launcher.config.schema import JobConfig
from launcher.training.components import build
from launcher.training.trainer import RunOutcome
from tests.distributed.ranks import Rank, run_ranks
from tests.distributed.test_world_sizes import formed, start_afresh
from tests.unit.training.small_jobs import Recorder, alone, job, manifest, run_store, trainer
from tests.unit.training.user_models import HERE

pytestmark = pytest.mark.distributed
DOUBLE = {"double": True}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.05, "weight_decay": 0.1}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
GROUPS = {"_target_": f"{HERE}.decay_groups"}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5}
WEIGHTED = {"_target_": "launcher.training.tasks.Classification", "ignore_index": 2, "class_weights": [1.0, 3.0, 1.0]}

PLAIN: dict[str, JobConfig] = {
    name: job({"_target_": f"{HERE}.{model}"}, data=DOUBLE, optimizer=optimizer, **more)
    for name, model, optimizer, more in (
        ("unused, frozen and thawed, AdamW", "Freezes", ADAMW, {}),
        ("unused, frozen and thawed, SGD", "Freezes", SGD, {}),
        ("thawed", "Thaws", ADAMW, {}),
        ("used by chance", "UsesByChance", ADAMW, {"trainer": {"grad_clip_norm": 0.5}}),
        ("shared and computed again", "SharesRecomputed", SGD, {}),
        ("sparse", "Looks", {"_target_": "torch.optim.SGD", "lr": 0.1}, {}),
        ("changes its input", "ChangesItsInput", SGD, {}),
        ("groups in another order", "Flat", GROUPS, {"scheduler": STEP}),
        ("labels that do not count", "Flat", SGD, {"task": WEIGHTED}),
    )
}
PER_SHARD: dict[str, JobConfig] = {
    name: job({"_target_": f"{HERE}.{model}", **settings}, data=DOUBLE, optimizer={"lr": 0.01})
    for name, model, settings in (
        ("nothing again", "Recomputed", {}),
        ("again, reentrant", "Recomputed", {"again": "reentrant"}),
        ("again, not reentrant", "Recomputed", {"again": "other"}),
        ("a buffer that is not persistent, and a count", "Remembers", {}),
        ("draws of Python and NumPy", "DrawsElsewhere", {}),
        ("a buffer that begins to change later", "BeginsLater", {}),
    )
}
State = dict[str, torch.Tensor]


def plain_loop(config: JobConfig) -> State:
    """No shards, no ranks, no engine."""
    made = trainer(config, Recorder())
    parts = made._parts
    model, data, order = copy.deepcopy(parts.model), parts.train, parts.order
    optimizer = build(config.optimizer, list(model.parameters()), key="optimizer")
    scheduler = None if config.scheduler is None else build(config.scheduler, optimizer, key="scheduler")
    weights = config.task.params.get("class_weights")
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    ignored = config.task.params.get("ignore_index", -100)
    model.train()
    for step in range(6):
        images, labels = data.read(order.samples(step * 32, 32))
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels, weights, ignore_index=ignored).backward()
        if config.trainer.grad_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.grad_clip_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept = {
        f"optimizer.{names[parameter]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    return {f"model.{name}": value for name, value in model.state_dict().items()} | kept


def state_of(made: Any) -> State:
    return {name: value.detach().clone() for name, value in made._parts.state.tensors().items()}


def train_all(me: Rank) -> dict[str, State]:
    torch.use_deterministic_algorithms(False)
    results = {}
    for exact in (False, True):
        for name, config in (PLAIN | PER_SHARD).items():
            if exact:
                config = in_exact_mode(config)
            made = trainer(config, Recorder())
            if me.rank > 0:
                with torch.no_grad():
                    for parameter in made._parts.model.parameters():
                        parameter.add_(1.0)
            collective = formed(me, f"{name}{exact}")
            start_afresh(made, collective)
            assert made.run(collective) is RunOutcome.FINISHED
            results[f"{name}, exact" if exact else name] = state_of(made)
    torch.use_deterministic_algorithms(False)
    return results


def in_exact_mode(config: JobConfig) -> JobConfig:
    return replace(config, elastic=replace(config.elastic, exact=True))


@pytest.fixture(scope="module")
def by_world_size() -> dict[int, list[dict[str, State]]]:
    return {world_size: run_ranks(world_size, train_all) for world_size in (1, 2, 3)}


def assert_close(given: State, wanted: State) -> None:
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(given[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["", ", exact"])
@pytest.mark.parametrize("name", PLAIN)
def test_it_is_what_a_plain_loop_over_whole_batches_gives(by_world_size: dict[int, Any], name: str, mode: str) -> None:
    wanted = plain_loop(PLAIN[name])
    for answers in by_world_size.values():
        for states in answers:
            assert_close(states[name + mode], wanted)


@pytest.mark.parametrize("mode", ["", ", exact"])
@pytest.mark.parametrize("name", PER_SHARD)
def test_it_is_the_same_with_any_number_of_workers(by_world_size: dict[int, Any], name: str, mode: str) -> None:
    wanted = by_world_size[1][0][name]
    for answers in by_world_size.values():
        for states in answers:
            assert_close(states[name + mode], wanted)
            if mode and "exact" in mode:
                assert all(torch.equal(value, by_world_size[1][0][name + mode][key]) for key, value in states[name + mode].items())


@pytest.mark.parametrize("again", ["again, reentrant", "again, not reentrant"])
def test_what_is_computed_again_changes_nothing(by_world_size: dict[int, Any], again: str) -> None:
    assert_close(by_world_size[1][0][again], by_world_size[1][0]["nothing again"])


@pytest.mark.parametrize("name", [*PLAIN, *PER_SHARD])
def test_a_run_that_was_stopped_and_resumed_is_the_same(by_world_size: dict[int, Any], name: str) -> None:
    """In a process that was not there before."""
    config = (PLAIN | PER_SHARD)[name]
    for at in (2, 4):
        run = run_store()
        recorder = Recorder(stop_at=at)
        stopped = trainer(config, recorder, run)
        stopped.run(alone())
        resumed = trainer(config, Recorder(), run)
        resumed.warm_up()
        resumed.restore(manifest(recorder.parts, config))
        assert resumed.run(alone(generation=2)) is RunOutcome.FINISHED
        assert_close(state_of(resumed), by_world_size[1][0][name])
