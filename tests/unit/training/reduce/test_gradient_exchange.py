"""What the buckets do between generations; tests/distributed has the sums themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from launcher.core.errors import UserCodeError
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.reduce.exact_exchange import ExactExchange
from launcher.training.reduce.gradient_exchange import GradientExchange

pytestmark = pytest.mark.unit
SUMS = 3


class FakeWork:
    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1
        if self.broken:
            raise CollectiveBroken("left")


class FakeCollective:
    """Two ranks, of which the other one adds nothing; once `broken`, what is under way fails."""

    rank, world_size = 0, 2

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.works: list[FakeWork] = []

    def check(self) -> None:
        pass

    def all_reduce(self, tensor: Tensor) -> FakeWork:
        return self._work()

    def all_to_all(self, received: Tensor, sent: Tensor, received_rows: list[int], sent_rows: list[int]) -> FakeWork:
        received.zero_()
        return self._work()

    def all_gather(self, gathered: Tensor, own: Tensor) -> FakeWork:
        return self._work()

    def _work(self) -> FakeWork:
        self.works.append(FakeWork(broken=self.broken))
        return self.works[-1]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.training.reduce.exchange.FIRST_BUCKET_BYTES", 1)
    monkeypatch.setattr("launcher.training.reduce.exchange.BUCKET_BYTES", 1)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))


def backward(exchange: Any, model: nn.Module) -> None:
    exchange.begin_step()
    exchange.arm(torch.ones(SUMS), last=True)
    model(torch.ones(1, 2)).sum().backward()


def test_nothing_of_a_broken_generation_writes_into_the_buckets_of_the_next(model: nn.Module) -> None:
    broken = FakeCollective(broken=True)
    exchange = GradientExchange(list(model.parameters()), broken)  # type: ignore[arg-type]
    backward(exchange, model)
    with pytest.raises(CollectiveBroken):
        exchange.finish()
    first, second = broken.works
    assert (first.waits, second.waits) == (1, 0)
    exchange.use(FakeCollective())  # type: ignore[arg-type]
    assert second.waits == 1, "only when the last call has ended is its memory free"
    assert all(bucket.work is None for bucket in exchange._buckets)


def test_nothing_of_a_broken_generation_writes_into_the_segments_of_the_next(model: nn.Module) -> None:
    broken = FakeCollective(broken=True)
    exchange = ExactExchange(list(model.parameters()), broken, shards=2)  # type: ignore[arg-type]
    backward(exchange, model)
    with pytest.raises(CollectiveBroken):
        exchange.finish()
    assert [work.waits for work in broken.works].count(0) > 0
    under_way = [bucket.work for bucket in exchange._buckets if bucket.work is not None]
    assert under_way
    exchange.use(FakeCollective())  # type: ignore[arg-type]
    assert all(work.waits >= 1 for work in broken.works)
    assert all(bucket.work is None and bucket.segments is None for bucket in exchange._buckets)


def test_a_step_that_broke_off_in_its_backward_pass_leaves_the_next_one_whole(model: nn.Module) -> None:
    exchange = GradientExchange(list(model.parameters()), FakeCollective())  # type: ignore[arg-type]
    backward(exchange, model)
    assert torch.equal(exchange.finish(), torch.ones(SUMS))
    wanted = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    exchange.begin_step()
    exchange.arm(torch.full((SUMS,), 7.0), last=True)  # the backward pass does not come
    exchange.use(FakeCollective())  # type: ignore[arg-type]
    backward(exchange, model)
    assert torch.equal(exchange.finish(), torch.ones(SUMS))
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), wanted, strict=True))  # type: ignore[arg-type]


def test_between_steps_no_gradient_goes_into_a_bucket(model: nn.Module) -> None:
    collective = FakeCollective()
    exchange = GradientExchange(list(model.parameters()), collective)  # type: ignore[arg-type]
    backward(exchange, model)
    exchange.finish()
    sent = len(collective.works)
    exchange.use(collective)  # type: ignore[arg-type]
    model.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    assert len(collective.works) == sent


def test_a_backward_pass_ends_where_the_generation_is_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parameters = list(model.parameters())
    collective = Collective(generation=1, rank=0, world_size=2, device="cpu", timeout_s=1.0)
    exchange = GradientExchange(parameters, collective)
    exchange.begin_step()
    loss = model(torch.ones(2, 4)).sum()
    exchange.check()
    exchange.arm(torch.zeros(3))
    parameters[-1].register_post_accumulate_grad_hook(lambda parameter: collective.leave())
    with pytest.raises(CollectiveBroken):
        loss.backward()
    assert parameters[0].grad is None, "nobody wants the rest"
    with pytest.raises(CollectiveBroken):
        exchange.check()


class Other:
    """A second rank whose part of each bucket is known: it has a gradient of 1 for the parameters at these places, counted as bits are."""

    rank, world_size = 0, 2

    def __init__(self, used: list[int], parameters: int) -> None:
        self.used, self.parameters = used, parameters
        self.sizes: list[int] = []

    def check(self) -> None:
        pass

    def all_reduce(self, tensor: Tensor) -> FakeWork:
        self.sizes.append(len(tensor))
        if len(self.sizes) == self.parameters:  # the last bucket: its bits are behind everything else
            bits = tensor[-self.parameters :]
            for place in self.used:
                bits[place] += 1.0
        return FakeWork(broken=False)


@pytest.mark.parametrize("others", [[], [0], [0, 1]])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_parameter_that_no_rank_used_has_no_gradient(others: list[int], world_size: int) -> None:
    unused, used = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    collective = Other(others, 2)
    collective.world_size = world_size
    exchange = GradientExchange([unused, used], collective)  # type: ignore[arg-type]
    exchange.begin_step()
    exchange.arm(torch.ones(SUMS))
    used.sum().backward()
    assert exchange.finish().tolist() == [1.0] * SUMS
    assert used.grad is not None
    assert (unused.grad is not None) is (world_size == 2 and 1 in others), "bits follow the buckets, the last parameter first"


@pytest.mark.parametrize("world_size", [1, 2])
def test_sparse_gradients_are_summed_dense(world_size: int) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    collective = Other([], 1)
    collective.world_size = world_size
    exchange = GradientExchange([table.weight], collective)  # type: ignore[arg-type]
    exchange.begin_step()
    exchange.arm(torch.ones(SUMS))
    table(torch.tensor([1, 3, 3])).sum().backward()
    exchange.finish()
    assert table.weight.grad is not None
    assert table.weight.grad.layout is torch.strided
    assert table.weight.grad.sum(1).tolist() == [0.0, 2.0, 0.0, 4.0, 0.0]


class Shared(nn.Module):
    """A weight in two blocks that are computed again, each with a backward pass of its own: it gets its gradient in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.shared, x, use_reentrant=True)
        return self.last(checkpoint(self.shared, x, use_reentrant=True))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_gradient_in_two_parts_is_whole_or_an_error(exact: bool, known: bool) -> None:
    model = Shared()
    parameters = list(model.parameters())
    x = torch.ones(1, 2).requires_grad_()
    wanted = torch.autograd.grad(model.last(model.shared(model.shared(x))).sum(), parameters)
    repeated = [model.shared.weight] if known else []
    collective = FakeCollective()
    exchange: Any
    exchange = ExactExchange(parameters, collective, shards=2) if exact else GradientExchange(parameters, collective)  # type: ignore[arg-type]
    exchange.lay_out((True, True), repeated)
    exchange.begin_step()
    exchange.arm(torch.ones(SUMS), last=True)
    if not known:
        with pytest.raises(UserCodeError, match="a further gradient"):
            model(x).sum().backward()
        return
    model(x).sum().backward()
    exchange.finish()
    if not exact:  # there the other rank's part is zero, and what is gathered is not ours
        assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(parameters, wanted, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [False, True])
def test_other_parameters_are_exchanged_when_others_are_trained(exact: bool) -> None:
    first, last = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    collective = Other([], 1)
    collective.world_size = 1 if exact else 2
    kinds: Any = ExactExchange if exact else GradientExchange
    exchange = kinds([first, last], collective, **({"shards": 1} if exact else {}))

    def step() -> list[Any]:
        exchange.begin_step()
        exchange.arm(torch.ones(SUMS), last=True)
        (2 * first * last).sum().backward()
        exchange.finish()
        return [None if parameter.grad is None else parameter.grad.tolist() for parameter in (first, last)]

    assert step() == [None, [2.0, 2.0]]
    first.requires_grad_(True)
    assert step()[1] == [2.0, 2.0]
    exchange.lay_out((True, True))
    collective.parameters, collective.sizes = 2, []
    assert step() == [[2.0, 2.0], [2.0, 2.0]]
    first.requires_grad_(False)
    collective.sizes = []
    assert step() == [None, [2.0, 2.0]]
    exchange.lay_out((False, True))
    collective.parameters, collective.sizes = 1, []
    assert step() == [None, [2.0, 2.0]]
    assert exact or collective.sizes == [2 + SUMS + 1]


def test_a_frozen_parameter_can_be_laid_out() -> None:
    """Whoever takes a state over, or computes a step again, lays out before forward has thawed it."""
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    exchange = GradientExchange([frozen], Other([], 1))  # type: ignore[arg-type]
    exchange.lay_out((True,))
    exchange.begin_step()
    exchange.arm(torch.ones(SUMS))
    assert not frozen.requires_grad
    frozen.requires_grad_(True)
    frozen.sum().backward()
    exchange.finish()
    assert frozen.grad is not None
