"""A state that moves between real processes: bit for bit, found where it was damaged, and one's own is safe until the new one is whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.config.schema import Component
from launcher.training.comm.collective import Collective, Work
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.state import pieces as state_pieces
from launcher.training.state.train_state import TrainState
from launcher.training.state.transfer import StateDamaged, StateHeader, StateMove, share_state
from models.mlp import MLP
from models.resnet import ResNet
from tests.distributed.ranks import HANG_S, Rank, SharedStore, processes, run_ranks, store_server

pytestmark = pytest.mark.distributed

STEPS = 3
FOUND_WITHIN_S = 5.0


class Odd(nn.Module):
    """Tensors of every kind that a state may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.conv.to(memory_format=torch.channels_last)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.narrow = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
        self.wide = nn.Parameter(torch.randn(3, 300_000, dtype=torch.float64).t())
        for name, value in {
            "mask": torch.rand(7) > 0.5,
            "count": torch.randint(2**60, ()),
            "empty": torch.ones(0, 3),
            "gaps": torch.randn(6, 200_000)[::2, 5:-5],
            "few": torch.randn(6, 8)[:, 1:5],
            "spectrum": torch.randn(3, dtype=torch.complex64),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x[:, :4])).sum(1) + self.conv(torch.ones(1, 2, 3, 3)).sum() + self.narrow.float().sum()
        return torch.stack([y, self.wide.float().square().mean().expand(len(y)), y * 0], 1)


def resnet() -> nn.Module:
    return ResNet(depth=18, classes=3, channels=1, width=16).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # only torch's stubs


def small_mlp() -> nn.Module:
    return MLP(64, 3, hidden=(700, 300))


KINDS: dict[str, tuple[Callable[[], nn.Module], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "resnet": (resnet, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "mlp": (small_mlp, torch.optim.Adam, {"lr": 0.01}),
    "odd": (Odd, torch.optim.AdamW, {"lr": 0.01}),
}


def made(kind: str, seed: int, steps: int) -> TrainState:
    torch.manual_seed(seed)
    build, optimizer, settings = KINDS[kind]
    model = build()
    chosen = optimizer(model.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(chosen, [2, 4], gamma=0.5)
    component = Component(target="MultiStepLR", params={})
    state = TrainState(model, chosen, scheduler, Component(target=optimizer.__name__, params=settings), component)
    train(state, range(steps))
    return state


def train(state: TrainState, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # dropout draws the same on every rank
        images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
        output = state.model(images if isinstance(state.model, ResNet) else images.flatten(1))
        state.optimizer.zero_grad()
        functional.cross_entropy(output, labels).backward()
        state.optimizer.step()
        assert state.scheduler is not None
        state.scheduler.step()


def bits(state: TrainState) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each tensor's type, shape and bytes."""
    return {
        name: (
            str(value.dtype),
            tuple(value.shape),
            value.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().tobytes(),
        )
        for name, value in state.tensors().items()
    }


def formed(me: Rank, name: str) -> Collective:
    store = SharedStore(me.port, f"{name}/")
    return Collective.form(store, generation=1, rank=me.rank, world_size=me.world_size, device="cpu", timeout_s=HANG_S)


Found = tuple[Any, dict[str, Any], dict[str, Any], list[float]]


def share_and_go_on(me: Rank, move: StateMove) -> dict[str, Found]:
    """Of the receivers the first is new and prepared, the second is a step behind; a third would be new. Others look on."""
    found = {}
    for kind in KINDS:
        collective = formed(me, kind)
        if me.rank in move.donors:
            state, holds_own = made(kind, 0, STEPS), False
        else:
            place = move.receivers.index(me.rank) if me.rank in move.receivers else 2
            state, holds_own = made(kind, place, STEPS - 1 if place == 1 else 0), place == 1
            if place == 0:
                state.prepare_to_receive()
        mine = StateHeader(state.document(STEPS), {"rank": me.rank, "rows": [{"loss": 0.1 + 0.2, "none": None}] * 1000})
        header = share_state(collective, move, state, mine, device="cpu", holds_own=holds_own)
        moved = bits(state)
        if me.rank in move.donors + move.receivers:
            train(state, range(STEPS, STEPS + 3))
        found[kind] = (
            {**header.records, "step": header.document.step},
            moved,
            bits(state),
            [group["lr"] for group in state.optimizer.param_groups],
        )
    return found


@pytest.mark.parametrize(
    ("donors", "receivers", "world_size"),
    [((1,), (0,), 3), ((0,), (2, 1), 3), ((2, 0), (1,), 3), ((0, 1, 4), (2, 3), 5)],
)
def test_receivers_hold_the_donors_state_and_continue_as_they_do(
    donors: tuple[int, ...], receivers: tuple[int, ...], world_size: int
) -> None:
    answers = run_ranks(world_size, share_and_go_on, StateMove(donors, receivers))
    for kind in KINDS:
        header, moved, continued, rates = answers[donors[0]][kind]
        assert header["rank"] == donors[0]
        assert header["rows"][999] == {"loss": 0.1 + 0.2, "none": None}
        assert moved != continued
        for rank in donors + receivers:
            assert answers[rank][kind][1:] == (moved, continued, rates)
        for rank in receivers:
            assert answers[rank][kind][0] == header
        for rank in set(range(world_size)) - {*donors, *receivers}:
            assert answers[rank][kind][0]["rank"] == rank
            assert answers[rank][kind][1] == answers[rank][kind][2] != moved


def share_nothing(me: Rank) -> Any:
    state = made("mlp", me.rank, 0)
    return share_state(
        formed(me, "nothing"), StateMove((0, 1), ()), state, StateHeader(state.document(0), {"rank": me.rank}), device="cpu", holds_own=True
    ).records


def test_without_receivers_nobody_waits() -> None:
    assert run_ranks(2, share_nothing) == [{"rank": 0}, {"rank": 1}]


class Tampers:
    """A collective whose message of one number arrives with one bit turned."""

    def __init__(self, collective: Collective, message: int) -> None:
        self._collective = collective
        self._left = message
        self.rank, self.device = collective.rank, collective.device

    def send(self, tensor: Tensor, destination: int) -> Work:
        if self._left == 0:
            tensor = tensor.clone()
            tensor[len(tensor) // 2] ^= 4
        self._left -= 1
        return self._collective.send(tensor, destination)


def damage(me: Rank, message: int, holds_own: bool) -> tuple[int, int | None, bool] | None:
    collective = formed(me, f"damage {message}")
    if me.rank == 0:
        state = made("resnet", 0, STEPS)
        tampering: Any = Tampers(collective, message)
        with suppress(CollectiveBroken):  # the receiver may be gone before all was sent
            share_state(tampering, StateMove((0,), (1,)), state, StateHeader(state.document(STEPS), {}), device="cpu", holds_own=False)
        return None
    state = made("resnet", 0, STEPS - 1)
    before, document = bits(state), state.document(0)
    with pytest.raises(StateDamaged) as caught:
        share_state(collective, StateMove((0,), (1,)), state, StateHeader(document, {}), device="cpu", holds_own=holds_own)
    return caught.value.donor, caught.value.piece, (bits(state), state.document(0)) == (before, document)


@pytest.mark.parametrize(("message", "piece"), [(0, None), (1, None), (2, 0), (5, 3)])
def test_a_bit_that_was_turned_on_its_way_is_found(message: int, piece: int | None) -> None:
    """Preface, header, and two of the pieces."""
    assert run_ranks(2, damage, message, True)[1] == (0, piece, True)


def test_a_newcomer_finds_it_too() -> None:
    donor, piece, _ = run_ranks(2, damage, 3, False)[1]
    assert (donor, piece) == (0, 1)


def others_differ(me: Rank) -> str | None:
    state = made("mlp" if me.rank else "resnet", 0, 1)
    try:
        share_state(formed(me, "differ"), StateMove((0, 1), (2,)), state, StateHeader(state.document(1), {}), device="cpu", holds_own=True)
    except (StateDamaged, CollectiveBroken) as error:
        return str(error)
    return None


def test_donors_that_do_not_hold_the_same_are_found() -> None:
    assert "from rank 1 is damaged: its tensors have other names" in str(run_ranks(3, others_differ)[2])


class Dies:
    """A collective whose process is killed in the middle of its pieces."""

    def __init__(self, collective: Collective, after: int) -> None:
        self._collective = collective
        self._left = after
        self.rank, self.device = collective.rank, collective.device

    def send(self, tensor: Tensor, destination: int) -> Work:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return self._collective.send(tensor, destination)


def lose_a_donor(rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    state_pieces.PIECE_BYTES = 64 << 10
    state = made("resnet", 0, STEPS if rank < 2 else STEPS - 1)
    before, document = bits(state), state.document(0)
    collective: Any = formed(Rank(rank, 3, port), "lose")
    if rank == 1:
        collective = Dies(collective, 20)
    start = time.monotonic()
    try:
        share_state(collective, StateMove((0, 1), (2,)), state, StateHeader(state.document(STEPS), {}), device="cpu", holds_own=True)
        outcome = "shared"
    except CollectiveBroken:
        outcome = "broken"
    answers.put((rank, outcome, time.monotonic() - start, (bits(state), state.document(0)) == (before, document)))
    time.sleep(HANG_S)  # it is the call that has to end, not the rank


def test_a_rank_that_is_behind_keeps_its_state_when_a_donor_is_killed_in_the_middle() -> None:
    answers = processes.Queue()
    with store_server() as port:
        ranks = [processes.Process(target=lose_a_donor, args=(rank, port, answers), daemon=True) for rank in range(3)]
        for process in ranks:
            process.start()
        try:
            found = {}
            while 2 not in found:
                rank, *outcome = answers.get(timeout=HANG_S)
                found[rank] = outcome
        finally:
            for process in ranks:
                process.kill()
                process.join()
    outcome, seconds, unchanged = found[2]
    assert (outcome, unchanged) == ("broken", True)
    assert seconds < FOUND_WITHIN_S
    assert 1 not in found
