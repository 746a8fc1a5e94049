"""What the buckets do between generations; tests/distributed has the sums themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
