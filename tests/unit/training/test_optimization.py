"""Optimizers and schedules that a step can serve, alone or made of others; the rest is refused while the job is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from launcher.core.errors import ConfigError
from launcher.training.trainer import RunOutcome, Trainer
from tests.unit.training.small_jobs import Recorder, alone, job, manifest, run_store, trainer

pytestmark = pytest.mark.unit
HERE = "tests.unit.training.test_optimization"
SCHEDULER = "torch.optim.lr_scheduler"
WARM_UP = {"_target_": f"{SCHEDULER}.LinearLR", "start_factor": 0.1, "total_iters": 3}
COSINE = {"_target_": f"{SCHEDULER}.CosineAnnealingLR", "T_max": "total_steps"}
SEQUENTIAL = {"_target_": f"{SCHEDULER}.SequentialLR", "schedulers": [WARM_UP, COSINE], "milestones": [3]}
CHAINED = {"_target_": f"{SCHEDULER}.ChainedScheduler", "schedulers": [WARM_UP, COSINE]}
MULTI_STEP = {"_target_": f"{SCHEDULER}.MultiStepLR", "milestones": [2, 4, 4], "gamma": 0.5}
NESTED = {"_target_": f"{SCHEDULER}.SequentialLR", "schedulers": [CHAINED, MULTI_STEP], "milestones": [2]}


def cycle(steps: int | str) -> dict[str, object]:
    return {"_target_": f"{SCHEDULER}.OneCycleLR", "max_lr": 0.1, "total_steps": steps}


class NeedsALoss(lr_scheduler.StepLR):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None: ...

    def step(self, loss: float) -> None: ...  # type: ignore[override]


class StepsTwice(torch.optim.SGD):
    def step(self, again: Any) -> None:  # type: ignore[override]
        pass


class OtherName:
    """A scheduler that calls its optimizer otherwise."""

    def __init__(self, tuned: torch.optim.Optimizer, factor: float) -> None:
        tuned.param_groups[0]["lr"] *= factor

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [
        ({"_target_": "torch.optim.LBFGS"}, r"needs arguments \(closure\)"),
        ({"_target_": f"{HERE}.StepsTwice"}, r"needs arguments \(again\)"),
        ({"_target_": "torch.optim.SparseAdam"}, "sparse gradients"),
    ],
)
def test_an_optimizer_that_a_step_cannot_serve_is_refused(optimizer: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        trainer(job(optimizer=optimizer), Recorder())
    assert (caught.value.where, caught.value.given) == ("optimizer._target_", optimizer["_target_"])


@pytest.mark.parametrize(
    ("scheduler", "what"),
    [
        ({"_target_": f"{SCHEDULER}.ReduceLROnPlateau"}, "needs a metric"),
        ({"_target_": f"{HERE}.NeedsALoss"}, "needs a metric"),
        ({"_target_": "builtins.str"}, "no scheduler"),
        (cycle(5), "ends before"),
        ({**SEQUENTIAL, "schedulers": [WARM_UP, cycle(2)]}, "ends before"),
        ({**SEQUENTIAL, "schedulers": [cycle(2), COSINE]}, "ends before"),
        ({**CHAINED, "schedulers": [WARM_UP, cycle(5)]}, "ends before"),
    ],
)
def test_a_scheduler_that_the_steps_cannot_serve_is_refused(scheduler: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        trainer(job(scheduler=scheduler), Recorder())
    assert caught.value.where.startswith("scheduler")


def rate(made: Trainer) -> float:
    return float(made._parts.state.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("scheduler", [SEQUENTIAL, CHAINED, NESTED, cycle(6), {**SEQUENTIAL, "schedulers": [cycle(3), cycle(3)]}])
def test_schedules_made_of_others_go_on_where_they_were(scheduler: dict[str, Any]) -> None:
    config = job(scheduler=scheduler)
    whole, recorded = trainer(config, Recorder()), Recorder()
    assert trainer(config, recorded).run(alone()) is RunOutcome.FINISHED
    whole.run(alone())
    store, first, second = run_store(), Recorder(stop_at=4), Recorder()
    assert trainer(config, first, store).run(alone()) is RunOutcome.STOPPED
    resumed = trainer(config, second, store)
    resumed.restore(manifest(first.parts, config))
    resumed.run(alone())
    assert first.losses + second.losses == recorded.losses
    assert rate(resumed) == rate(whole)


def test_a_schedule_made_of_others_is_the_one_that_torch_makes() -> None:
    made = trainer(job(scheduler=SEQUENTIAL), Recorder())
    made.run(alone())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    parts = [lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)]
    wanted = lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])
    for _ in range(6):
        optimizer.step()
        wanted.step()
    assert rate(made) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_longer_run_whose_schedule_has_ended_is_refused_before_a_step() -> None:
    store, first = run_store(), Recorder()
    trainer(job(scheduler=cycle(6)), first, store).run(alone())
    with pytest.raises(ConfigError, match="ends before") as caught:
        trainer(job(scheduler=cycle(6), trainer={"steps": 9}), Recorder(), store)
    assert "the word total_steps" in caught.value.next


def test_a_scheduler_may_name_its_optimizer_as_it_likes() -> None:
    assert rate(trainer(job(scheduler={"_target_": f"{HERE}.OtherName", "factor": 0.5}), Recorder())) == 0.05
