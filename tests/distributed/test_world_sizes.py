"""The number of workers changes who computes, never what is computed."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch

from launcher.config.schema import JobConfig
from launcher.core.errors import TrainingDiverged
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.state.transfer import StateMove
from launcher.training.step import StepFlags
from launcher.training.trainer import RunOutcome, Trainer
from tests.distributed.ranks import HANG_S, Rank, SharedStore, run_ranks
from tests.unit.training.small_jobs import Recorder, alone, job, manifest, run_store, trainer

pytestmark = pytest.mark.distributed

RESNET = {"_target_": "models.resnet.ResNet", "depth": 18, "classes": 3, "channels": 1, "width": 8}
MODELS: dict[str, Any] = {
    "resnet with BatchNorm": RESNET,
    "dropout, fused": {"_target_": "tests.unit.training.small_jobs.WithDropout"},
    "dropout of its own, one shard at a time": {"_target_": "tests.unit.training.small_jobs.FunctionalDropout"},
    "buffers of its own": {"_target_": "tests.unit.training.small_jobs.WithOwnBuffers"},
}


def twenty_steps() -> dict[str, JobConfig]:
    trainer = {"steps": 20, "eval_every_steps": 10, "grad_clip_norm": 5.0}
    jobs = {}
    for name, model in MODELS.items():
        double = {"_target_": "tests.unit.training.small_jobs.in_double_precision", "model": model}
        for key, chosen in ((name, model), (f"{name}, in double precision", double)):
            data = {"side": 16 if model is RESNET else 8, "double": chosen is double}
            jobs[key] = job(chosen, data=data, optimizer={"lr": 0.01}, trainer=trainer, workers="1..3")
    return jobs


def formed(me: Rank, name: str) -> Collective:
    store = SharedStore(me.port, f"{name}/")
    return Collective.form(store, generation=1, rank=me.rank, world_size=me.world_size, device="cpu", timeout_s=HANG_S)


def start_afresh(made: Trainer, collective: Collective) -> None:
    """What rank 0 built is the state of all."""
    made.share(collective, StateMove((0,), tuple(range(1, collective.world_size))), {}, holds_own=False)


def train_all(me: Rank) -> dict[str, tuple[Recorder, dict[str, torch.Tensor]]]:
    """Each job once; the ranks start from different seeds of torch's, as different machines may."""
    results = {}
    for name, config in twenty_steps().items():
        recorder = Recorder()
        made = trainer(config, recorder)
        if me.rank > 0:
            with torch.no_grad():
                for parameter in made._parts.model.parameters():
                    parameter.add_(1.0)
        collective = formed(me, name)
        start_afresh(made, collective)
        assert made.run(collective) is RunOutcome.FINISHED
        results[name] = (recorder, {key: value.clone() for key, value in made._parts.state.tensors().items()})
    return results


@pytest.fixture(scope="module")
def by_world_size() -> dict[int, Any]:
    return {world_size: run_ranks(world_size, train_all) for world_size in (1, 2, 3)}


def accuracies(recorder: Recorder) -> list[float]:
    return [record.metrics["accuracy"] for record in recorder.records]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["", ", in double precision"])
def test_the_loss_is_the_same_with_one_two_and_three_workers(by_world_size: dict[int, Any], name: str, precision: str) -> None:
    """In double precision nothing is left but the rule itself; training amplifies the noise of fp32, BatchNorm over few values most."""
    name, tolerance = name + precision, 1e-9 if precision else 1e-2 if "BatchNorm" in name else 1e-4
    [(wanted, _)] = [answer[name] for answer in by_world_size[1]]
    assert len(wanted.losses) == 20
    for world_size in (2, 3):
        for recorder, _ in (answer[name] for answer in by_world_size[world_size]):
            assert recorder.losses == pytest.approx(wanted.losses, rel=tolerance)
            assert accuracies(recorder) == pytest.approx(accuracies(wanted), abs=1 / 32)  # a tie may fall to either side
            for (step, metrics), (wanted_step, wanted_metrics) in zip(recorder.evaluations, wanted.evaluations, strict=True):
                assert step == wanted_step
                assert metrics == pytest.approx(wanted_metrics, rel=tolerance, abs=1 / 23)


@pytest.mark.parametrize("name", MODELS)
def test_all_ranks_hold_the_same_state_and_share_out_the_checkpoint(by_world_size: dict[int, Any], name: str) -> None:
    for world_size in (2, 3):
        answers = [answer[name] for answer in by_world_size[world_size]]
        for recorder, state in answers:
            assert [(part.step, part.rank, part.world_size) for part in recorder.parts] == [(20, recorder.parts[0].rank, world_size)]
            assert all(torch.equal(value, answers[0][1][key]) for key, value in state.items())
        whole = manifest([recorder.parts[0] for recorder, _ in answers], twenty_steps()[name])
        assert (whole.step, whole.samples) == (20, 640)


def stop_by_one(me: Rank) -> tuple[str, int, int]:
    recorder = Recorder(stop_at=4 if me.rank == 1 else None)
    made = trainer(job(), recorder)
    outcome = made.run(formed(me, "stop"))
    return outcome.name, made.step, recorder.parts[-1].step


def test_all_stop_after_the_same_step_when_one_is_asked_to() -> None:
    assert run_ranks(2, stop_by_one) == [("STOPPED", 4, 4)] * 2


class LeavesAt(Recorder):
    """Leaves the generation in the step after `at`, from a thread of its own."""

    def __init__(self, collective: Collective, at: int) -> None:
        super().__init__()
        self.collective, self.at = collective, at

    def flags(self) -> StepFlags:
        if len(self.records) == self.at:
            thread = threading.Thread(target=self.collective.leave)
            thread.start()
            thread.join()
        return StepFlags()


def leave_and_go_on_alone(me: Rank) -> tuple[list[float], bool]:
    collective = formed(me, "leave")
    recorder = LeavesAt(collective, 3) if me.rank == 0 else Recorder()
    made = trainer(job("WithOwnBuffers"), recorder)
    with pytest.raises(CollectiveBroken):
        made.run(collective)
    assert made.step == 3
    recorder.at = -1
    finished = made.run(alone(generation=2)) is RunOutcome.FINISHED and made.step == 6
    return recorder.losses, finished


def test_a_step_that_was_not_applied_is_taken_again_in_the_next_generation() -> None:
    uninterrupted = Recorder()
    trainer(job("WithOwnBuffers"), uninterrupted).run(alone())
    for losses, finished in run_ranks(2, leave_and_go_on_alone):
        assert finished
        assert losses == pytest.approx(uninterrupted.losses, rel=1e-4)


def diverge(me: Rank) -> tuple[str, int]:
    made = trainer(job("NotANumber"), Recorder())
    with pytest.raises(TrainingDiverged) as caught:
        made.run(formed(me, "diverge"))
    return caught.value.what, made.step


def test_every_rank_knows_of_a_loss_that_is_not_finite() -> None:
    assert run_ranks(2, diverge) == [("the loss is not finite at step 3", 2)] * 2


def break_one(me: Rank) -> tuple[str, int]:
    recorder = Recorder()
    collective = formed(me, "break")
    made = trainer(job("Breaks" if me.rank == 1 else "Plain", trainer={"steps": 3}), recorder)
    try:
        made.run(collective)
    except Exception as error:  # noqa: BLE001 - its kind is what is tested
        collective.leave()
        return type(error).__name__, made.step
    return "none", made.step


def test_an_exception_of_the_model_on_one_rank_breaks_the_others_collective() -> None:
    assert run_ranks(2, break_one) == [("CollectiveBroken", 1), ("ZeroDivisionError", 1)]


def restore_elsewhere(me: Rank) -> tuple[float, float, list[float]]:
    """Three ranks save; the last one then reads all their chunks, as one worker, and goes on."""
    config, store = (
        job(trainer={"steps": 4}, scheduler={"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}),
        run_store(),
    )
    recorder = Recorder()
    made = trainer(config, recorder, store)
    made.run(formed(me, "save"))
    shared = SharedStore(me.port, "files/")
    shared.set(str(me.rank), pickle.dumps((recorder.parts, store.store.objects)))  # type: ignore[attr-defined]
    everything = [pickle.loads(shared.get(str(rank), HANG_S)) for rank in range(me.world_size)]
    for _, objects in everything:
        store.store.objects |= objects  # type: ignore[attr-defined]
    parts = [part for found, _ in everything for part in found]
    again = trainer(config, Recorder(), store)
    again.restore(manifest(parts, config))
    same = all(torch.equal(value, again._parts.state.tensors()[key]) for key, value in made._parts.state.tensors().items())
    return float(same), again.step, [group["lr"] for group in again._parts.state.optimizer.param_groups]


def test_what_three_ranks_saved_one_can_load() -> None:
    assert run_ranks(3, restore_elsewhere) == [(1.0, 4, [pytest.approx(0.0, abs=1e-9)])] * 3
