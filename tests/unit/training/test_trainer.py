"""One worker alone; tests/distributed has the same with several."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.core.errors import CheckpointCorrupt, ConfigError, StoreUnavailable, TrainingDiverged, UserCodeError
from launcher.training.state.transfer import StateMove
from launcher.training.step import StepFlags
from launcher.training.trainer import RunOutcome, Trainer
from tests.unit.training.small_jobs import HERE, MemoryStore, Recorder, alone, job, manifest, run_store, trainer

pytestmark = pytest.mark.unit
ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.01, "betas": [0.8, 0.99], "fused": True}
ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": "total_steps"}
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}


def state(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made._parts.state.tensors().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def trained(config: Any, **options: Any) -> tuple[Trainer, Recorder]:
    recorder = Recorder(**options)
    made = trainer(config, recorder)
    made.run(alone())
    return made, recorder


def test_it_learns_evaluates_and_saves() -> None:
    config = job(trainer={"steps": 12, "eval_every_steps": 5}, checkpoint={"every_steps": 4})
    recorder = Recorder()
    made = trainer(config, recorder)
    assert made.run(alone()) is RunOutcome.FINISHED
    assert [record.step for record in recorder.records] == list(range(1, 13))
    assert recorder.losses[-1] < 0.5 * recorder.losses[0]
    assert [step for step, _ in recorder.evaluations] == [5, 10, 12]
    assert recorder.evaluations[-1][1].keys() == {"loss", "accuracy"}
    assert recorder.evaluations[-1][1]["accuracy"] > 0.6
    assert [part.step for part in recorder.parts] == [4, 8, 12]
    assert made.data_size == 52


SWITCHING = {"trainer": {"steps": 6, "eval_every_steps": 3}, "checkpoint": {"every_steps": 2}}


@pytest.mark.parametrize("model", ["WithNorm", "WithDropout", "FunctionalDropout", "WithOwnBuffers"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_generation_that_follows_goes_on_as_if_nothing_had_happened(model: str, at: int) -> None:
    config = job(model, **SWITCHING)
    whole, recorded = trained(config)
    recorder = Recorder(switch_at=at)
    made = trainer(config, recorder)
    assert made.run(alone()) is RunOutcome.SWITCHED
    assert made.step == at
    recorder.switch_at = None
    assert made.run(alone(generation=2)) is RunOutcome.FINISHED
    assert recorder.losses == recorded.losses
    assert recorder.evaluations == recorded.evaluations
    assert [part.step for part in recorder.parts] == [2, 4, 6]
    assert [part.generation for part in recorder.parts] == [1 if step <= at else 2 for step in (2, 4, 6)]
    assert_same(state(made), state(whole))


def test_a_switch_does_not_come_before_the_end_or_a_stop() -> None:
    _, recorded = trained(job(), switch_at=6)
    assert [part.step for part in recorded.parts] == [6]
    recorder = Recorder(stop_at=3, switch_at=3)
    assert trainer(job(), recorder).run(alone()) is RunOutcome.STOPPED
    assert [part.step for part in recorder.parts] == [3]
    assert trainer(job(), Recorder(switch_at=6)).run(alone()) is RunOutcome.FINISHED


def test_flags_are_asked_for_once_a_step_however_many_forward_passes_it_has() -> None:
    class Counts(Recorder):
        asked = 0

        def flags(self) -> StepFlags:
            self.asked += 1
            return super().flags()

    for exact in (False, True):
        recorder = Counts()
        trainer(job("Plain", trainer={"fuse": "off"}, elastic={"exact": exact}), recorder).run(alone())
        assert recorder.asked == 6
        torch.use_deterministic_algorithms(False)


def test_in_exact_mode_a_flag_counts_once_too() -> None:
    """The shards of a rank each bring sums of their own."""
    recorder = Recorder(switch_at=2)
    made = trainer(job("Plain", elastic={"exact": True}), recorder)
    assert made.run(alone()) is RunOutcome.SWITCHED
    assert made.step == 2
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("at", "evaluated", "saved"), [(2, [], [(2, 1), (2, 2)]), (3, [3, 3], [(2, 1)]), (5, [3], [(2, 1), (4, 1)])])
def test_after_a_generation_that_ended_in_the_middle_what_belongs_to_its_last_step_is_done_again(
    at: int, evaluated: list[int], saved: list[tuple[int, int]]
) -> None:
    recorder = Recorder(switch_at=at)
    made = trainer(job(**SWITCHING), recorder)
    made.run(alone())
    recorder.switch_at = at + 1
    made.run(alone(generation=2), again=True)
    made.finish()
    known = [step for step, _ in recorder.evaluations if step <= at]
    assert known == evaluated
    assert [(part.step, part.generation) for part in recorder.parts if part.step <= at] == saved
    first, *again = [metrics for step, metrics in recorder.evaluations if step == at] or [{}]
    assert all(metrics == first for metrics in again)


def test_a_generation_that_is_told_to_begins_with_a_checkpoint() -> None:
    recorder = Recorder(switch_at=3)
    made = trainer(job(), recorder)
    made.run(alone())
    recorder.switch_at = None
    made.run(alone(generation=2), save=True)
    assert [(part.step, part.generation) for part in recorder.parts] == [(3, 2), (6, 2)]


def test_a_group_that_is_too_small_saves_and_trains_no_step() -> None:
    recorder = Recorder(switch_at=3)
    made = trainer(job(), recorder)
    made.run(alone())
    before = state(made)
    assert made.hold(alone(generation=2)) is RunOutcome.HELD
    assert made.hold(alone(generation=3)) is RunOutcome.HELD
    assert [(part.step, part.generation) for part in recorder.parts] == [(3, 2), (3, 3)], (
        "of each generation: whether one is whole is not known"
    )
    assert (made.step, len(recorder.records)) == (3, 3)
    assert_same(state(made), before)
    recorder.switch_at = None
    assert made.run(alone(generation=4)) is RunOutcome.FINISHED
    assert recorder.losses == trained(job())[1].losses


def test_a_worker_may_hold_before_its_first_step() -> None:
    recorder = Recorder()
    assert trainer(job(), recorder).hold(alone()) is RunOutcome.HELD
    assert [part.step for part in recorder.parts] == [0]


def test_a_checkpoint_of_a_held_group_that_cannot_be_written_is_raised() -> None:
    class Full(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            raise StoreUnavailable("no space left")

    with pytest.raises(StoreUnavailable):
        trainer(job(), Recorder(), run_store(Full())).hold(alone())


def test_sharing_with_nobody_changes_nothing() -> None:
    made, _ = trained(job())
    before = state(made)
    records = {"rows": [{"step": 6}]}
    assert made.share(alone(generation=2), StateMove((0,), ()), records, holds_own=True) == records
    assert made.step == 6
    assert_same(state(made), before)


@pytest.mark.parametrize(("optimizer", "scheduler"), [(None, None), (ADAM, ONE_CYCLE), (None, COSINE)])
@pytest.mark.parametrize("model", ["WithNorm", "WithDropout", "FunctionalDropout", "WithOwnBuffers"])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(model: str, optimizer: Any, scheduler: Any) -> None:
    groups = {key: value for key, value in {"optimizer": optimizer, "scheduler": scheduler}.items() if value}
    config = job(model, **groups, trainer={"grad_clip_norm": 0.5})
    whole, recorded = trained(config)

    store, first = run_store(), Recorder(stop_at=3)
    assert trainer(config, first, store).run(alone()) is RunOutcome.STOPPED
    assert [part.step for part in first.parts] == [3]
    second = Recorder()
    resumed = trainer(config, second, store)
    resumed.restore(manifest(first.parts, config))
    assert resumed.step == 3
    assert resumed.run(alone()) is RunOutcome.FINISHED
    assert first.losses + second.losses == recorded.losses
    assert_same(state(resumed), state(whole))
    assert resumed._parts.state.document(6) == whole._parts.state.document(6)


@pytest.mark.parametrize("scheduler", [COSINE, ONE_CYCLE])
def test_a_longer_run_follows_the_longer_schedule(scheduler: Any) -> None:
    short, long = (job(scheduler=scheduler, trainer={"steps": steps}) for steps in (4, 10))
    store, first = run_store(), Recorder()
    trainer(short, first, store).run(alone())
    resumed = trainer(long, Recorder(), store)
    resumed.restore(manifest(first.parts, short))
    wanted = trainer(long, Recorder())
    for _ in range(4):
        wanted._parts.state.optimizer.step()
        wanted._parts.state.scheduler.step()
    assert resumed._parts.state.optimizer.param_groups[0]["lr"] == wanted._parts.state.optimizer.param_groups[0]["lr"]
    assert resumed.run(alone()) is RunOutcome.FINISHED
    assert resumed.step == 10


def test_a_rate_that_was_changed_for_the_resumption_holds() -> None:
    store, first = run_store(), Recorder(stop_at=2)
    trainer(job(), first, store).run(alone())
    changed = trainer(job(optimizer={"lr": 0.003}), Recorder(), store)
    changed.restore(manifest(first.parts, job()))
    assert changed._parts.state.optimizer.param_groups[0]["lr"] == 0.003
    assert "optimizer.0.weight.momentum_buffer" in changed._parts.state.tensors()
    with pytest.raises(ConfigError, match="another optimizer"):
        trainer(job(optimizer=ADAM), Recorder(), store).restore(manifest(first.parts, job()))


def test_a_run_at_its_end_only_adds_what_is_missing() -> None:
    config, store, first = job(), run_store(), Recorder()
    trainer(config, first, store).run(alone())
    again = Recorder()
    resumed = trainer(config, again, store)
    resumed.restore(manifest(first.parts, config))
    assert resumed.run(alone()) is RunOutcome.FINISHED
    assert (again.records, again.parts) == ([], [])
    assert again.evaluations == first.evaluations


def test_the_model_alone_begins_a_new_run() -> None:
    config, store, first = job(), run_store(), Recorder()
    made = trainer(config, first, store)
    made.run(alone())
    new = trainer(job(optimizer=ADAM, seed=9), Recorder())
    new.initialise(store, manifest(first.parts, config))
    assert new.step == 0
    assert all(torch.equal(value, made._parts.model.state_dict()[name]) for name, value in new._parts.model.state_dict().items())
    with pytest.raises(CheckpointCorrupt, match="does not fit the model"):
        trainer(job("Plain"), Recorder()).initialise(store, manifest(first.parts, config))


@pytest.mark.parametrize("model", ["WithNorm", "WithDropout"])
def test_fused_and_one_shard_at_a_time_are_the_same_training(model: str) -> None:
    losses = [trained(job(model, workers="1..2", trainer={"fuse": fuse, "steps": 20}))[1].losses for fuse in ("on", "off")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_models_own_buffers_follow_the_rule() -> None:
    made, _ = trained(job("WithOwnBuffers", trainer={"steps": 3}))
    assert made._parts.model.calls == 2**40 + 3
    assert made._parts.model.constant.tolist() == torch.full((2,), 0.1).tolist()
    assert made._parts.model.seen.abs().sum() > 0


def test_a_loss_that_is_not_finite_ends_it_before_the_step_is_applied() -> None:
    recorder = Recorder()
    made = trainer(job("NotANumber"), recorder)
    with pytest.raises(TrainingDiverged, match="at step 3"):
        made.run(alone())
    assert made.step == 2
    assert all(torch.isfinite(value).all() for value in made._parts.model.state_dict().values())
    assert recorder.parts == []


def test_a_state_that_is_not_finite_is_not_saved() -> None:
    recorder = Recorder()
    made = trainer(job(optimizer={"lr": 1e38, "weight_decay": 1e3}, trainer={"steps": 1}), recorder)
    with pytest.raises(TrainingDiverged, match="state is not finite"):
        made.run(alone())
    assert recorder.parts == []


def test_an_exception_of_the_model_comes_out_as_it_is() -> None:
    recorder = Recorder()
    made = trainer(job("Breaks"), recorder)
    with pytest.raises(ZeroDivisionError, match="mine"):
        made.run(alone())
    assert made.step == 1


def test_a_checkpoint_that_cannot_be_written_is_told_and_at_the_end_raised() -> None:
    class Full(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            raise StoreUnavailable("no space left")

    recorder = Recorder()
    made = trainer(job(checkpoint={"every_steps": 2}), recorder, run_store(Full()))
    with pytest.raises(StoreUnavailable):
        made.run(alone())
    assert [step for step, _ in recorder.failures] == [2, 4, 6]
    assert made.step == 6


def test_bf16_trains_and_keeps_fp32_parameters() -> None:
    made, recorder = trained(job(trainer={"precision": "bf16", "steps": 12}))
    assert recorder.losses[-1] < 0.7 * recorder.losses[0]
    assert {value.dtype for value in made._parts.model.parameters()} == {torch.float32}


def test_gradients_are_clipped_to_their_norm() -> None:
    _, recorder = trained(job(trainer={"grad_clip_norm": 1e-9, "steps": 3}))
    assert all(record.grad_norm is not None and record.grad_norm > 1e-6 for record in recorder.records)
    made, _ = trained(job("Plain", optimizer={"momentum": 0.0}, trainer={"grad_clip_norm": 1e-3, "steps": 1}))
    start = trainer(job("Plain"), Recorder())
    moved = (
        sum(
            float((a - b).detach().square().sum())
            for a, b in zip(made._parts.model.parameters(), start._parts.model.parameters(), strict=True)
        )
        ** 0.5
    )
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", ["Split", "AugmentedSplit"])
def test_reading_ahead_gives_the_same_samples(kind: str) -> None:
    losses = [trained(job(data={"kind": kind}, trainer={"fuse": fuse, "steps": 8}))[1].losses for fuse in ("on", "off")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    plain = trained(job(trainer={"steps": 8}))[1].losses
    assert (losses[0] == pytest.approx(plain, rel=1e-4)) is (kind == "Split")


MISFITS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": {"_target_": "models.mlp.MLP", "inputs": 64, "classes": 2}}, UserCodeError, "fewer classes"),
    ({"model": {"_target_": "torch.nn.Identity"}}, UserCodeError, "does not fit classification"),
    ({"model": {"_target_": "builtins.dict"}}, UserCodeError, "not a torch.nn.Module"),
    ({"model": {"_target_": "torch.nn.Flatten"}}, UserCodeError, "no parameters"),
    ({"data": {"_target_": "builtins.dict"}}, UserCodeError, "no train split"),
    ({"data": {"_target_": f"{HERE}.Data", "size": 0}}, UserCodeError, "no samples"),
    ({"data": {"_target_": "builtins.open", "file": "/nowhere/at/all"}}, UserCodeError, "data cannot be read: No such file"),
    ({"scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}}, ConfigError, "needs a metric"),
    ({"optimizer": {"_target_": "builtins.list"}}, ConfigError, "no optimizer"),
]


@pytest.mark.parametrize(("groups", "kind", "what"), MISFITS)
def test_what_does_not_fit_together_is_said_before_training(groups: dict[str, Any], kind: type[Exception], what: str) -> None:
    with pytest.raises(kind, match=what):
        trainer(job(**groups), Recorder())
