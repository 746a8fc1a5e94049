"""Exact mode: after every step the same bits, whoever computed it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from launcher.config.schema import JobConfig
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.data.samples import read_forward
from launcher.training.reduce import exchange
from launcher.training.reduce.exact_exchange import ExactExchange
from launcher.training.step import StepFlags
from launcher.training.trainer import RunOutcome, Trainer
from tests.distributed.ranks import HANG_S, Rank, SharedStore, run_ranks
from tests.distributed.test_world_sizes import MODELS, RESNET, start_afresh
from tests.unit.training.small_jobs import Recorder, alone, job, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]  # 15 jobs at three sizes: a minute, or three on a busy machine

STEPS = 8
MICRO = 4
ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.01}
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}


def exact_job(model: Any, shards: int, *, exact: bool = True, precision: str = "fp32", **groups: Any) -> JobConfig:
    length = {"steps": STEPS, "global_batch_size": shards * MICRO, "micro_batch_size": MICRO}
    defaults = {"data": {"side": 16 if model is RESNET else 8}, "optimizer": {"lr": 0.05}, "scheduler": COSINE}
    trainer = {**length, "precision": precision, "grad_clip_norm": 0.5}
    return job(model, trainer=trainer, elastic={"exact": exact}, workers="1..3", **{**defaults, **groups})


def jobs() -> dict[str, JobConfig]:
    found = {f"{name}, {shards} shards": exact_job(model, shards) for name, model in MODELS.items() for shards in (8, 6)}
    found["resnet with BatchNorm, 5 shards"] = exact_job(RESNET, 5)
    found["resnet with BatchNorm, AdamW"] = exact_job(RESNET, 8, optimizer=ADAM)
    found["a parameter that is not used"] = exact_job("WithNorm", 7)
    double = {"_target_": "tests.unit.training.small_jobs.in_double_precision", "model": RESNET}
    found["in double precision"] = exact_job(double, 8, data={"side": 16, "double": True})
    found["bf16"] = exact_job(RESNET, 6, precision="bf16")
    found["augmented"] = exact_job("WithDropout", 8, data={"kind": "AugmentedSplit"})
    return found


def digest(made: Trainer) -> str:
    """Of the bits of all parameters, buffers and tensors of the optimizer."""
    whole = hashlib.sha256()
    for name, value in sorted(made._parts.state.tensors().items()):
        whole.update(name.encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


class Digests(Recorder):
    """What the state and the loss were after each step."""

    made: Trainer

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.seen: list[str] = []

    def applied(self, record: Any) -> None:
        super().applied(record)
        self.seen.append(f"{record.loss.hex()} {sorted(record.metrics.items())} {digest(self.made)}")


def small_buckets() -> None:
    """So that models of a test have several."""
    exchange.FIRST_BUCKET_BYTES = 1 << 12
    exchange.BUCKET_BYTES = 1 << 16


def built(config: JobConfig) -> tuple[Trainer, Digests]:
    recorder = Digests()
    recorder.made = trainer(config, recorder)
    return recorder.made, recorder


def formed(me: Rank, name: str, members: list[int]) -> Collective:
    store = SharedStore(me.port, f"{name}/")
    rank, world_size = members.index(me.rank), len(members)
    return Collective.form(store, generation=1, rank=rank, world_size=world_size, device="cpu", timeout_s=HANG_S)


def train(me: Rank, config: JobConfig) -> list[str]:
    small_buckets()
    made, recorder = built(config)
    collective = formed(me, "train", list(range(me.world_size)))
    start_afresh(made, collective)
    assert made.run(collective) is RunOutcome.FINISHED
    return recorder.seen


@pytest.mark.parametrize("name", jobs())
def test_every_step_is_bitwise_the_same_with_one_two_and_three_workers(name: str) -> None:
    config = jobs()[name]
    [wanted] = run_ranks(1, train, config)
    assert len(set(wanted)) == STEPS
    for world_size in (2, 3):
        assert run_ranks(world_size, train, config) == [wanted] * world_size


def test_fast_mode_is_not() -> None:
    """Else the tests here would show nothing."""
    config = exact_job(RESNET, 8, exact=False)
    assert run_ranks(1, train, config)[0] != run_ranks(3, train, config)[0]


class Life:
    """A worker that trains in one generation after the other with one exchange."""

    def __init__(self, me: Rank, config: JobConfig) -> None:
        self.me = me
        self.made, self.recorder = built(config)
        self.made.warm_up()
        self.exchange = self.made._make_exchange(alone())
        self.seen: dict[int, str] = {}
        self.losses: dict[int, float] = {}

    def train(self, collective: Collective, until: int, *, leaves_in: int | None = None) -> None:
        """`leaves_in`: the step (as a count of those applied) in the middle of which this rank leaves the generation."""
        made = self.made
        self.exchange.use(collective)
        forwards = made._plan.forwards(collective.world_size, collective.rank)

        def batches() -> Iterator[Any]:
            for number, shards in enumerate(forwards, 1):
                if made.step == leaves_in and number == len(forwards):
                    collective.leave()
                yield read_forward(made._parts.train, made._parts.order, made._plan, made.step, shards)

        while made.step < until:
            sums = made._step.compute(made.step, forwards, batches, self.exchange, StepFlags())
            made._step.apply(sums, made.step + 1)
            made.step += 1
            self.seen[made.step] = f"{sums.loss.hex()} {digest(made)}"
            self.losses[made.step] = sums.loss

    def give(self, key: str) -> None:
        state = self.made._parts.state
        tensors = {name: value.clone() for name, value in state.tensors().items()}
        SharedStore(self.me.port).set(key, pickle.dumps((tensors, state.document(self.made.step))))

    def take(self, key: str) -> None:
        tensors, document = pickle.loads(SharedStore(self.me.port).get(key, HANG_S))
        self.made._parts.state.load(tensors, document)
        self.made.step = document.step


CHANGING = {
    "resnet with BatchNorm": (RESNET, 8, {}),
    "resnet with BatchNorm, AdamW, 5 shards": (RESNET, 5, {"optimizer": ADAM}),
    "dropout of its own, 6 shards": (MODELS["dropout of its own, one shard at a time"], 6, {}),
    "buffers of its own": (MODELS["buffers of its own"], 6, {}),
}


def change(me: Rank, config: JobConfig) -> tuple[dict[int, str], dict[int, float]]:
    """Worker 0 alone; all three; 1 and 2, whose step is broken off by 1 leaving; 2 alone; all three."""
    small_buckets()
    life = Life(me, config)
    if me.rank == 0:
        life.train(alone(), 2)
        life.give("first")
    else:
        life.take("first")
    life.train(formed(me, "generation 2", [0, 1, 2]), 4)
    if me.rank > 0:
        with pytest.raises(CollectiveBroken):
            life.train(formed(me, "generation 3", [1, 2]), 7, leaves_in=5 if me.rank == 1 else None)
        assert life.made.step == 5
    if me.rank == 2:
        life.train(alone(), 6)
        life.give("last")
    else:
        life.take("last")
    life.train(formed(me, "generation 5", [2, 0, 1]), STEPS)
    return life.seen, life.losses


def uninterrupted(me: Rank, config: JobConfig) -> tuple[dict[int, str], dict[int, float]]:
    life = Life(me, config)
    life.train(alone(), STEPS)
    return life.seen, life.losses


@pytest.mark.parametrize("name", CHANGING)
def test_a_group_that_changes_and_a_step_that_is_broken_off_leave_no_trace_in_the_bits(name: str) -> None:
    model, shards, more = CHANGING[name]
    config = exact_job(model, shards, **more)
    [(wanted, _)] = run_ranks(1, uninterrupted, config)
    answers = [seen for seen, _ in run_ranks(3, change, config)]
    assert [sorted(seen) for seen in answers] == [[1, 2, 3, 4, 7, 8], [3, 4, 5, 7, 8], [3, 4, 5, 6, 7, 8]]
    for seen in answers:
        assert seen == {step: wanted[step] for step in seen}


@pytest.mark.parametrize("name", CHANGING)
def test_the_fast_exchange_goes_on_in_other_generations_too(name: str) -> None:
    model, shards, more = CHANGING[name]
    config = exact_job(model, shards, exact=False, **more)
    [(_, wanted)] = run_ranks(1, uninterrupted, config)
    answers = run_ranks(3, change, config)
    for _, losses in answers:
        assert losses == pytest.approx({step: wanted[step] for step in losses}, rel=2e-2)
    assert len({seen[STEPS] for seen, _ in answers}) == 1


def mode_of_a_run(me: Rank) -> tuple[bool, str, str]:
    made, _ = built(exact_job(RESNET, 8))
    warm = made.warm_up()
    return torch.are_deterministic_algorithms_enabled(), warm.reason, type(made._make_exchange(alone())).__name__


def test_exact_mode_computes_one_shard_at_a_time_with_deterministic_algorithms() -> None:
    assert run_ranks(1, mode_of_a_run) == [(True, "one shard at a time: elastic.exact", ExactExchange.__name__)]
