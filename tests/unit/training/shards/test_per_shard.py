from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from launcher.core.errors import UserCodeError
from launcher.training.shards.per_shard import NotPerShard, PerShardLayers
from launcher.training.shards.tracked_buffers import TrackedBuffers

pytestmark = pytest.mark.unit
MICRO = 6


def interleaved(shards: list[Tensor]) -> Tensor:
    return torch.stack(shards, 1).flatten(0, 1)


def layers_of(model: nn.Module) -> PerShardLayers:
    made = PerShardLayers(model, seed=3, micro_batch_size=MICRO)
    made.statistics.begin_step()
    return made


NORMS = [
    (nn.BatchNorm1d(5), (5,)),
    (nn.BatchNorm1d(5), (5, 7)),
    (nn.BatchNorm2d(5, momentum=None), (5, 4, 3)),
    (nn.BatchNorm2d(5, affine=False), (5, 4, 3)),
    (nn.BatchNorm2d(5, bias=False), (5, 4, 3)),
    (nn.BatchNorm3d(5), (5, 2, 3, 2)),
    (nn.BatchNorm2d(5, track_running_stats=False), (5, 2, 2)),
]


@pytest.mark.parametrize(("norm", "shape"), NORMS)
def test_batch_norm_of_a_fused_pass_is_that_of_each_shard(norm: nn.Module, shape: tuple[int, ...]) -> None:
    shards = [torch.randn(MICRO, *shape) * (1 + index) + index for index in range(3)]
    alone = [copy.deepcopy(norm) for _ in shards]
    wanted = interleaved([layer(shard) for layer, shard in zip(alone, shards, strict=True)])

    layers = layers_of(model := nn.Sequential(copy.deepcopy(norm)))
    before = copy.deepcopy(model.state_dict())
    with layers.forward(0, range(3)):
        given = model(interleaved(shards))
    torch.testing.assert_close(given, wanted)
    torch.testing.assert_close(model.state_dict(), before)  # nothing is applied yet

    layers.statistics.apply(layers.statistics.sums(), 3)
    for name, value in model[0].named_buffers():
        updates = torch.stack([dict(layer.named_buffers())[name].double() for layer in alone])
        torch.testing.assert_close(value.double(), updates.mean(0))


def test_running_statistics_are_the_same_in_one_pass_or_several() -> None:
    shards = [torch.randn(MICRO, 4) + index for index in range(5)]
    states = []
    for passes in ([range(5)], [range(3), range(3, 5)], [range(index, index + 1) for index in range(5)]):
        layers = layers_of(model := nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)))
        nn.init.eye_(model[1].weight)
        for part in passes:
            with layers.forward(0, part):
                model(interleaved([shards[index] for index in part]))
        layers.statistics.apply(layers.statistics.sums(), 5)
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(states[0], states[2])
    assert states[0]["0.num_batches_tracked"] == 1


DROPOUTS = [(nn.Dropout(0.4), (3000,)), (nn.Dropout1d(0.4), (40, 3)), (nn.Dropout2d(0.4), (40, 3, 2)), (nn.Dropout3d(0.4), (40, 2, 2, 2))]


@pytest.mark.parametrize(("dropout", "shape"), DROPOUTS)
def test_dropout_depends_on_the_shard_alone(dropout: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(dropout, nn.Identity(), copy.deepcopy(dropout))
    layers = layers_of(model)
    ones = torch.ones(MICRO, *shape)
    alone = []
    for shard in range(4):
        with layers.forward(7, range(shard, shard + 1)):
            alone.append(model(ones))
    with layers.forward(7, range(1, 4)):
        together = model(interleaved([ones] * 3))
    assert torch.equal(together, interleaved(alone[1:]))
    assert not torch.equal(alone[0], alone[1])
    with layers.forward(8, range(1)):
        assert not torch.equal(model(ones), alone[0])
    kept = (torch.stack(alone) != 0).float().mean()
    assert abs(kept - 0.36) < 0.08  # kept by both layers
    assert torch.unique(alone[0]).tolist() == pytest.approx([0.0, 1 / 0.36])
    if len(shape) > 1:
        assert ((alone[0] == 0).flatten(2).all(2) | (alone[0] != 0).flatten(2).all(2)).all()


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_of_nothing_and_of_everything(p: float, kept: float) -> None:
    layers = layers_of(model := nn.Sequential(nn.Dropout(p)))
    with layers.forward(0, range(1)):
        assert model(torch.ones(MICRO, 50)).mean() == kept


def test_evaluation_and_subclasses_are_torchs_own() -> None:
    class Mine(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    layers = layers_of(model := nn.Sequential(Mine(4), nn.BatchNorm1d(4), nn.Dropout(0.9)).eval())
    x = torch.randn(MICRO, 4)
    with layers.forward(0, range(1)):
        torch.testing.assert_close(model(x), (x + 1) / (1 + 1e-5) ** 0.5)
        assert torch.equal(model.train()[0](x), x + 1)


def test_rows_that_are_no_samples_cannot_be_fused_but_work_alone() -> None:
    layers = layers_of(model := nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(NotPerShard, match="120 rows for 12 samples"), layers.forward(0, range(2)):
        model(torch.randn(120, 4))
    with layers.forward(0, range(1)):
        assert model(torch.randn(60, 4)).shape == (60, 4)


def test_sync_batch_norm_is_refused() -> None:
    with pytest.raises(UserCodeError, match="SyncBatchNorm") as caught:
        layers_of(nn.Sequential(nn.SyncBatchNorm(4)))
    assert "layer 0" in caught.value.where


LAYOUTS = [((2, 3), torch.channels_last), ((2, 3, 2), torch.channels_last_3d)]


@pytest.mark.parametrize(("sides", "layout"), LAYOUTS)
@pytest.mark.parametrize("width", [1, 3])
def test_batch_norm_and_dropout_keep_channels_last(sides: tuple[int, ...], layout: torch.memory_format, width: int) -> None:
    norm = (nn.BatchNorm2d if len(sides) == 2 else nn.BatchNorm3d)(5)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(MICRO * width, 5, *sides) + 1).requires_grad_()
    results = []
    for memory_format in (torch.contiguous_format, layout):
        layers = layers_of(model := nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.3)))
        given = x.detach().to(memory_format=memory_format).requires_grad_()
        with layers.forward(0, range(width)):
            y = model(given)
        assert y.is_contiguous(memory_format=memory_format)
        (y * y).sum().backward()
        results.append([y, given.grad, model[0].weight.grad, model[0].bias.grad, *layers.statistics.sums()])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)


class Blocks(nn.Module):
    """`twice`: the same Dropout in both blocks."""

    def __init__(self, again: str, *, twice: bool = False, preserve: bool = True) -> None:
        super().__init__()
        shared = nn.Dropout(0.4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), shared if twice else nn.Dropout(0.4), nn.Tanh()) for _ in range(2)
        )
        self.again, self.preserve = again, preserve

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            settings = {"use_reentrant": self.again == "reentrant", "preserve_rng_state": self.preserve}
            x = block(x) if self.again == "nothing" else checkpoint(block, x, **settings)
        return x


def results_of(model: Blocks, width: int) -> list[Tensor]:
    torch.manual_seed(5)
    layers = layers_of(model)
    x = torch.randn(MICRO * width, 8).requires_grad_()
    with layers.forward(3, range(2, 2 + width)):
        y = model(x)
    y.square().sum().backward()
    layers.statistics.apply(layers.statistics.sums(), width)
    return [y, x.grad, *(item.grad for item in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("again", ["reentrant", "without reentrant"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("twice", [False, True])
def test_what_a_backward_pass_computes_again_is_what_was_computed(again: str, width: int, twice: bool) -> None:
    plain = Blocks("nothing", twice=twice)
    other = Blocks(again, twice=twice)
    other.load_state_dict(plain.state_dict())
    for given, wanted in zip(results_of(other, width), results_of(plain, width), strict=True):
        torch.testing.assert_close(given, wanted)


def test_a_dropout_that_is_called_once_is_known_again_without_the_generator() -> None:
    plain, other = Blocks("nothing"), Blocks("reentrant", preserve=False)
    other.load_state_dict(plain.state_dict())
    for given, wanted in zip(results_of(other, 1), results_of(plain, 1), strict=True):
        torch.testing.assert_close(given, wanted)
    with pytest.raises(UserCodeError, match="with other random numbers"):
        results_of(Blocks("reentrant", twice=True, preserve=False), 1)


def test_after_the_step_layers_are_torchs_own_again() -> None:
    layers = layers_of(model := nn.Sequential(nn.BatchNorm1d(4)))
    with layers.forward(0, range(1)):
        model(torch.randn(MICRO, 4))
    layers.end_step()
    model(torch.randn(MICRO, 4))
    assert model[0].num_batches_tracked == 1


def test_other_shards_steps_and_calls_compile_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.dropout = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(torch.relu(self.dropout(self.norm(self.first(x)))))

    torch._dynamo.reset()
    counters.clear()
    eager = Net()
    compiled = Net()
    compiled.load_state_dict(eager.state_dict())
    layers = {"eager": layers_of(eager), "compiled": layers_of(compiled)}
    run = torch.compile(compiled, backend="aot_eager")
    seen = []
    for step in range(4):
        for shards in (range(1), range(1, 2), range(7, 8), range(2, 4), range(4, 7), range(9, 14), range(8), range(3, 10)):
            x = torch.randn(MICRO * len(shards), 8)
            results = []
            for name, model in (("eager", eager), ("compiled", run)):
                layers[name].statistics.begin_step()
                with layers[name].forward(step, shards):
                    results.append(model(x))
                results[-1].sum().backward()
                layers[name].statistics.apply(layers[name].statistics.sums(), len(shards))
            torch.testing.assert_close(*results)
        seen.append(counters["stats"]["unique_graphs"])
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(eager.named_buffers()))
    assert not counters["graph_break"]
    assert seen[0] == 2, "for one shard, and for any number"
    assert seen == [seen[0]] * 4


def test_buffers_of_the_models_own_are_means_and_whole_numbers_are_exact() -> None:
    model = nn.Module()
    model.register_buffer("seen", torch.tensor([1.0, 2.0]))
    model.register_buffer("count", torch.tensor([-5, 2**62 + 1]))
    model.register_buffer("flag", torch.tensor(False))
    ranks = []
    for forwards in ([range(2)], [range(2, 3)]):
        buffers = TrackedBuffers(model, ["seen", "count", "flag"])
        assert buffers.begun_to_change() == [0.0, 0.0, 0.0]
        buffers.begin_step()
        for shards in forwards:
            buffers.begin_forward()
            model.seen += 3.0 * (1 + shards.start)  # 3 for shards 0 and 1, 9 for shard 2
            model.count += 2 if 0 in shards else 100
            model.flag |= True
            buffers.end_forward(shards)
        ranks.append([part.clone() for part in buffers.sums()])
        buffers.roll_back()
        assert model.seen.tolist() == [1.0, 2.0]
    buffers.apply([a + b for a, b in zip(*ranks, strict=True)], 3)
    assert model.seen.tolist() == [6.0, 7.0]
    assert model.count.tolist() == [-3, 2**62 + 3]
    assert model.flag.item() is True


def test_a_buffer_that_begins_to_change_is_noticed_and_put_back() -> None:
    model = nn.Module()
    model.register_buffer("later", torch.tensor([1.0]))
    model.register_buffer("replaced", torch.tensor([2.0]))
    model.register_buffer("constant", torch.tensor([3.0]))
    buffers = TrackedBuffers(model, [])
    model.constant += 1.0  # outside of a step
    buffers.begin_step()
    for change in (True, False):
        buffers.begin_forward()
        if change:
            model.later += 1.0
            model.replaced = torch.tensor([5.0])
        buffers.end_forward(range(1))
    assert buffers.names == ["later", "replaced", "constant"]
    assert buffers.begun_to_change() == [1.0, 1.0, 0.0]
    buffers.roll_back()
    assert (model.later.item(), model.replaced.item(), model.constant.item()) == (1.0, 2.0, 4.0)
    buffers.track(["later", "replaced"])
    buffers.begin_step()
    buffers.begin_forward()
    model.later += 1.0
    buffers.end_forward(range(1))
    assert buffers.begun_to_change() == [0.0, 0.0, 0.0]
    buffers.apply(buffers.sums(), 1)
    assert model.later.item() == 2.0
