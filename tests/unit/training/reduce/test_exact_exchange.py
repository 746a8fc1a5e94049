"""The exchange of exact mode on a rank that is alone, and how segments are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError
from launcher.training.device import use_deterministic_algorithms
from launcher.training.reduce.exact_exchange import ExactExchange, Segments
from launcher.training.reduce.reduction_tree import subtrees_of
from tests.unit.training.small_jobs import Recorder, alone, job, trainer

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _settings_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = before


def summed(exchange: ExactExchange, gradients: list[list[Tensor | None]], parameters: list[nn.Parameter]) -> Tensor:
    """A step whose backward passes gave these gradients: for each shard, one for each parameter."""
    exchange.begin_step()
    for shard, given in enumerate(gradients):
        exchange.arm(torch.tensor([1.0, float(shard)]), last=shard == len(gradients) - 1)
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
    return exchange.finish()


def test_the_sum_is_that_of_the_tree_and_nothing_of_the_step_before_is_in_it() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    exchange = ExactExchange([parameter], alone(), shards=4)
    big = 2.0**24  # big + 1 is big in fp32, so the order shows
    for _ in range(2):
        sums = summed(exchange, [[torch.tensor([value])] for value in (big, 1.0, 1.0, 1.0)], [parameter])
        assert parameter.grad is not None
        assert parameter.grad.item() == (big + 2)
        assert sums.tolist() == [4.0, 6.0]


def test_a_shard_without_a_gradient_adds_zero_and_no_gradient_at_all_stays_none() -> None:
    """Also by its sign: -0 + 0 is 0, whether the zero comes from this rank or from another."""
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    exchange = ExactExchange([used, unused], alone(), shards=3)
    summed(exchange, [[torch.full((2,), -0.0), None], [None, None], [None, None]], [used, unused])
    assert used.grad is not None
    assert not used.grad.signbit().any()
    assert unused.grad is None
    summed(exchange, [[None, None], [None, None], [None, torch.ones(3)]], [used, unused])
    assert used.grad is None
    assert torch.equal(unused.grad, torch.ones(3)) if unused.grad is not None else False


def test_gradients_have_the_layout_and_the_type_of_their_parameter() -> None:
    double = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    filters = nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    exchange = ExactExchange([double, filters], alone(), shards=1)
    assert exchange.dtype is torch.float64
    gradient = torch.randn(4, 3, 2, 2)
    summed(exchange, [[torch.ones(3, dtype=torch.float64), gradient]], [double, filters])
    assert filters.grad is not None
    assert filters.grad.stride() == filters.stride()
    assert filters.grad.dtype == torch.float32
    assert torch.equal(filters.grad, gradient)


def test_tensors_of_a_bucket_begin_where_kernels_like_it_and_segments_are_equal() -> None:
    owned = [subtrees_of(range(3), 8), subtrees_of(range(3, 8), 8)]
    segments = Segments([5, 100, 1], owned, 0, torch.empty(0))
    assert len(segments.flat) == 256
    assert [len(piece) for piece in segments.pieces] == [5, 100, 1]
    assert [piece.storage_offset() % 64 for piece in segments.pieces] == [0, 0, 0]


def test_deterministic_algorithms_are_asked_for_and_cublas_is_told() -> None:
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_an_operator_that_cannot_be_deterministic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.training import warm_up

    def refuses(*arguments: object, **settings: object) -> None:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(warm_up.TrialStep, "_pass", refuses)
    made = trainer(job("Plain", elastic={"exact": True}), Recorder())
    with pytest.raises(UserCodeError, match="cumsum_cuda_kernel") as caught:
        made.warm_up()
    assert caught.value.where == "elastic.exact"


def test_in_exact_mode_the_number_of_threads_is_never_the_machines() -> None:
    assert job(workers="1..4").threads(64) == 16
    assert job(workers="1..4").threads(2) == 1
    assert job(elastic={"exact": True}).threads(64) == 1
    assert job(elastic={"exact": True}, resources={"threads": 6}).threads(64) == 6
