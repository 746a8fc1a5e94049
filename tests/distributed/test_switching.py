"""Workers go from one generation to the next in the middle of training, as agreed or because one died: the losses do not tell."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from launcher.config.schema import JobConfig
from launcher.core.types import JsonObject
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.state.transfer import StateMove
from launcher.training.step import StepFlags
from launcher.training.trainer import RunOutcome, Trainer
from tests.distributed.ranks import HANG_S, Rank, SharedStore, run_ranks
from tests.distributed.test_exact import digest, small_buckets
from tests.distributed.test_world_sizes import MODELS, RESNET
from tests.unit.training.small_jobs import Recorder, alone, job, manifest, trainer

pytestmark = pytest.mark.distributed

STEPS = 12
EXACT = "exact mode"
MOMENTS = {"_target_": "torch.optim.AdamW", "lr": 0.01}


def jobs() -> dict[str, JobConfig]:
    """In double precision nothing is left but the rule itself; in exact mode nothing at all (with BatchNorm, which has buffers to move)."""
    common: dict[str, Any] = {"workers": "1..4", "checkpoint": {"every_steps": 4}, "optimizer": MOMENTS}
    length = {"steps": STEPS, "eval_every_steps": 5, "grad_clip_norm": 5.0}
    double = {"_target_": "tests.unit.training.small_jobs.in_double_precision", "model": MODELS["dropout, fused"]}
    return {
        "dropout, fused": job(double, data={"side": 8, "double": True}, trainer=length, **common),
        EXACT: job(RESNET, data={"side": 16}, trainer=length, elastic={"exact": True}, **common),
    }


JOBS = jobs()


class Group:
    """The process group of one generation, formed in the background as a worker does it; a thread waits for the order to leave."""

    def __init__(self, me: Rank, generation: int, members: Sequence[int]) -> None:
        self.key = f"{generation}/"
        self._port = me.port
        self.collective = Collective(
            generation=generation, rank=members.index(me.rank), world_size=len(members), device="cpu", timeout_s=HANG_S
        )
        self._error: Exception | None = None
        self._connecting = threading.Thread(target=self._connect, daemon=True)
        self._connecting.start()
        threading.Thread(target=self._leave_on_order, daemon=True).start()

    def formed(self) -> Collective:
        self._connecting.join()
        if self._error is not None:
            raise self._error
        return self.collective

    def order_all_to_leave(self) -> None:
        SharedStore(self._port, self.key).set("leave", b"")

    def _connect(self) -> None:
        try:
            self.collective.connect(SharedStore(self._port, self.key))
        except Exception as error:  # noqa: BLE001 - raised where it is asked for
            self._error = error

    def _leave_on_order(self) -> None:
        try:
            SharedStore(self._port, self.key).get("leave", 2 * HANG_S)
        except Exception:  # noqa: BLE001 - the test is over
            return
        self.collective.leave()


class Member(Recorder):
    """A worker; it flags to switch in each step after `knows_at` steps."""

    def __init__(self, name: str, rank: int) -> None:
        super().__init__()
        self.knows_at = math.inf
        self.digests: dict[int, str] = {}
        self.made: Trainer = trainer(JOBS[name], self)
        if rank > 0:  # as if built on another machine, where nothing came out alike
            with torch.no_grad():
                for parameter in self.made._parts.model.parameters():
                    parameter.add_(1.0)
        self.made.warm_up()

    def flags(self) -> StepFlags:
        return StepFlags(switch=self.made.step >= self.knows_at)

    def applied(self, record: Any) -> None:
        super().applied(record)
        self.digests[record.step] = digest(self.made)

    def share(self, collective: Collective, donors: Sequence[int], receivers: Sequence[int], *, holds_own: bool, said: str) -> JsonObject:
        return self.made.share(collective, StateMove(tuple(donors), tuple(receivers)), {"said": said}, holds_own=holds_own)


@dataclass
class Account:
    """What a worker saw of its life."""

    losses: dict[int, float]
    evaluations: list[tuple[int, dict[str, float]]]
    digests: dict[int, str]
    parts: list[Any]
    notes: list[Any] = field(default_factory=list)


def account(member: Member, notes: list[Any]) -> Account:
    member.made.finish()
    steps = [record.step for record in member.records]
    assert len(steps) == len(set(steps)), "no step was applied twice"
    losses = {record.step: record.loss for record in member.records}
    return Account(losses, member.evaluations, member.digests, member.parts, notes)


@pytest.fixture
def wanted(name: str) -> Iterator[Account]:
    """Of one worker that nothing happens to."""
    member = Member(name, 0)
    assert member.made.run(alone()) is RunOutcome.FINISHED
    yield account(member, [])
    torch.use_deterministic_algorithms(False)


def assert_same_training(found: Account, wanted: Account, name: str) -> None:
    if name == EXACT:
        assert found.losses == {step: wanted.losses[step] for step in found.losses}
        assert found.digests == {step: wanted.digests[step] for step in found.digests}
    for step, loss in found.losses.items():
        assert loss == pytest.approx(wanted.losses[step], rel=1e-9 if name != EXACT else 0), step
    known = dict(wanted.evaluations)
    for step, metrics in found.evaluations:
        tolerance = 1e-9 if name != EXACT else 1e-5  # evaluation is summed as it comes
        assert metrics == pytest.approx(known[step], rel=tolerance, abs=1 / 23 if name == EXACT else 1e-9), step


# as agreed


def change_as_agreed(me: Rank, name: str) -> Account | None:
    """Workers 0 and 1; then 2 as well; then 1 and 2 without 0. Each hears of the decision at another step."""
    small_buckets()
    member, notes = Member(name, me.rank), []
    made = member.made
    first = Group(me, 1, [0, 1]) if me.rank < 2 else None
    second = Group(me, 2, [1, 2, 0])
    if first is not None:
        collective = first.formed()
        member.share(collective, [0], [1], holds_own=False, said="built")
        member.knows_at = (2, 4)[me.rank]
        notes.append((made.run(collective), made.step))
    third = Group(me, 3, [2, 1]) if me.rank > 0 else None
    collective = second.formed()
    taken = member.share(collective, [0, 2], [1], holds_own=first is not None, said=f"worker {me.rank}")
    notes.append((taken, made.step))
    member.knows_at = (6, 5, 7)[me.rank]
    notes.append((made.run(collective), made.step))
    if third is not None:
        collective = third.formed()
        member.share(collective, [0, 1], [], holds_own=True, said="")
        member.knows_at = math.inf
        notes.append((made.run(collective), made.step))
    return account(member, notes)


@pytest.mark.parametrize("name", JOBS)
def test_a_group_grows_and_shrinks_after_one_step_for_all(wanted: Account, name: str) -> None:
    accounts = run_ranks(3, change_as_agreed, name)
    for found in accounts:
        assert_same_training(found, wanted, name)
    of_donor = ({"said": "worker 1"}, 5)
    first, second, last = (RunOutcome.SWITCHED, 5), (RunOutcome.SWITCHED, 8), (RunOutcome.FINISHED, STEPS)
    assert accounts[0].notes == [first, ({"said": "worker 0"}, 5), second]
    assert accounts[1].notes == [first, of_donor, second, last]
    assert accounts[2].notes == [of_donor, second, last], "the newcomer goes on from the first donor's records"
    assert [sorted(found.losses) for found in accounts] == [list(range(1, 9)), list(range(1, 13)), list(range(6, 13))]
    for step in range(6, 13):
        assert len({found.digests[step] for found in accounts if step in found.digests}) == 1, "the ranks hold the same state"
    assert [[step for step, _ in found.evaluations] for found in accounts] == [[5], [5, 10, 12], [10, 12]]
    parts = [part for found in accounts for part in found.parts]
    saved = {(part.step, part.generation): part.world_size for part in parts}
    assert saved == {(4, 1): 2, (8, 2): 3, (12, 3): 2}
    for step, generation in saved:
        assert manifest([part for part in parts if part.step == step], JOBS[name]).generation == generation


# because one died


def kill_itself_in_the_middle_of(member: Member, step: int) -> None:
    """When the last gradients of a backward pass come: what came before is on its way to the others."""

    def kill(_: Any) -> None:
        if member.made.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    next(iter(member.made._parts.model.parameters())).register_post_accumulate_grad_hook(kill)


def train_until_broken(member: Member, group: Group) -> list[bool]:
    """What was still under way in the exchange then: whether it has ended once another generation uses it."""
    with pytest.raises(CollectiveBroken):
        member.made.run(group.formed())
    group.order_all_to_leave()
    exchange = member.made._exchange
    assert exchange is not None
    under_way = [bucket.work for bucket in exchange._buckets if bucket.work is not None]  # type: ignore[attr-defined]
    exchange.use(alone(2))
    works = [getattr(work, "_work", None) for work in under_way]
    return [work.is_completed() for work in works if work is not None]


def survive(me: Rank, name: str) -> Account:
    """Workers 0, 1 and 2; 1 dies in the fifth step; 2, 0 and the newcomer 3 go on."""
    small_buckets()
    member, notes = Member(name, me.rank), []
    made = member.made
    if me.rank == 1:
        kill_itself_in_the_middle_of(member, 4)
    if me.rank < 3:
        group = Group(me, 1, [0, 1, 2])
        member.share(group.formed(), [0], [1, 2], holds_own=False, said="built")
        notes.append(train_until_broken(member, group))
        notes.append(made.step)
    collective = Group(me, 2, [2, 0, 3]).formed()
    notes.append(member.share(collective, [0, 1], [2], holds_own=me.rank != 3, said=f"worker {me.rank}"))
    assert made.run(collective, again=True) is RunOutcome.FINISHED
    return account(member, notes)


@pytest.mark.parametrize("name", JOBS)
def test_after_a_death_in_the_middle_of_a_step_the_others_take_it_again(wanted: Account, name: str) -> None:
    accounts = run_ranks(4, survive, name, lost=[1])
    for found in accounts:
        assert_same_training(found, wanted, name)
    assert [sorted(found.losses) for found in accounts] == [list(range(1, 13))] * 2 + [list(range(5, 13))]
    for survivor in accounts[:2]:
        ended, step, _ = survivor.notes
        assert step == 4
        assert all(ended), "nothing of the broken generation writes any more"
    assert accounts[1].notes[2] == accounts[2].notes[0] == {"said": "worker 2"}
    for step in range(5, 13):
        assert len({found.digests[step] for found in accounts}) == 1
    again = [part for found in accounts for part in found.parts if part.generation == 2]
    assert sorted((part.step, part.rank) for part in again) == [(step, rank) for step in (4, 8, 12) for rank in range(3)]


# one is a step behind


def be_cut_off_with_the_last_collective_of(member: Member, collective: Collective, step: int) -> None:
    """As when the order to leave comes when all has arrived and nothing is applied yet: the others apply the step."""
    member.made._enter(collective)
    exchange: Any = member.made._exchange
    finish = exchange.finish

    def finish_and_leave() -> Any:
        sums = finish()
        if member.made.step == step:
            collective.leave()
            raise CollectiveBroken("left")
        return sums

    exchange.finish = finish_and_leave


def fall_behind(me: Rank, name: str) -> Account:
    """Workers 0, 1 and 2; 2 comes out of the fourth step before it is applied; all go on from 0 and 1."""
    small_buckets()
    member, notes = Member(name, me.rank), []
    made = member.made
    group = Group(me, 1, [0, 1, 2])
    collective = group.formed()
    member.share(collective, [0], [1, 2], holds_own=False, said="built")
    if me.rank == 2:
        be_cut_off_with_the_last_collective_of(member, collective, 3)
    with pytest.raises(CollectiveBroken):
        made.run(collective)
    notes.append((made.step, digest(made)))
    group.order_all_to_leave()
    collective = Group(me, 2, [1, 2, 0]).formed()
    taken = member.share(collective, [0, 2], [1], holds_own=True, said=f"worker {me.rank}")
    notes.append((taken["said"], made.step, digest(made)))
    assert made.run(collective, again=True) is RunOutcome.FINISHED
    return account(member, notes)


@pytest.mark.parametrize("name", JOBS)
def test_who_is_behind_takes_the_state_of_the_most_advanced(wanted: Account, name: str) -> None:
    accounts = run_ranks(3, fall_behind, name)
    for found in accounts:
        assert_same_training(found, wanted, name)
    assert [found.notes[0][0] for found in accounts] == [4, 4, 3]
    assert accounts[2].notes[0][1] == accounts[2].digests[3], "the step that was not applied left no trace"
    shared = accounts[0].digests[4]
    assert [found.notes[1] for found in accounts] == [("worker 0", 4, shared), ("worker 1", 4, shared), ("worker 1", 4, shared)]
    assert sorted(accounts[2].losses) == [1, 2, 3, *range(5, 13)]
    for step in range(5, 13):
        assert len({found.digests[step] for found in accounts}) == 1


# who does not know, and who has less than enough


def switch_without_one(me: Rank) -> tuple[str, int]:
    """Worker 1 never hears of the decision."""
    member = Member("dropout, fused", 0)
    member.knows_at = 2 if me.rank != 1 else math.inf
    return member.made.run(Group(me, 1, [0, 1, 2]).formed()).name, member.made.step


def test_as_long_as_one_does_not_know_of_the_decision_nobody_leaves() -> None:
    assert run_ranks(3, switch_without_one) == [("FINISHED", STEPS)] * 3


def hold(me: Rank) -> tuple[str, int, list[tuple[int, int, int, int]]]:
    """Two of three survive, which is too few to train: they save, and go on when there is a third again."""
    member = Member("dropout, fused", me.rank)
    made = member.made
    if me.rank < 2:
        group = Group(me, 1, [0, 1])
        member.share(group.formed(), [0], [1], holds_own=False, said="")
        member.knows_at = 2
        made.run(group.formed())
        collective = Group(me, 2, [1, 0]).formed()
        member.share(collective, [0, 1], [], holds_own=True, said="")
        assert made.hold(collective) is RunOutcome.HELD
        member.knows_at = math.inf
    collective = Group(me, 3, [0, 1, 2]).formed()
    member.share(collective, [0, 1], [2], holds_own=me.rank < 2, said="")
    outcome = made.run(collective)
    made.finish()
    return outcome.name, made.step, [(part.step, part.generation, part.rank, part.world_size) for part in member.parts]


def test_a_group_that_is_too_small_saves_and_goes_on_when_it_has_grown() -> None:
    answers = run_ranks(3, hold)
    assert [answer[:2] for answer in answers] == [("FINISHED", STEPS)] * 3
    assert [part for part in answers[0][2] if part[1] == 2] == [(3, 2, 1, 2)]
    assert [part for part in answers[1][2] if part[1] == 2] == [(3, 2, 0, 2)]
    assert [part[:2] for part in answers[2][2]] == [(4, 3), (8, 3), (12, 3)]
