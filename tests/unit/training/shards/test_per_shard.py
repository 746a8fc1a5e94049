from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from launcher.core.errors import UserCodeError
from launcher.training.shards.per_shard import NotPerShard, PerShardLayers
from launcher.training.shards.random_tape import BLOCK, RandomTapes
from launcher.training.shards.tracked_buffers import TrackedBuffers

pytestmark = pytest.mark.unit
MICRO = 6


def interleaved(shards: list[Tensor]) -> Tensor:
    return torch.stack(shards, 1).flatten(0, 1)


def layers_of(model: nn.Module) -> PerShardLayers:
    made = PerShardLayers(model, seed=3, micro_batch_size=MICRO, device="cpu")
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


def test_a_tape_does_not_depend_on_company_or_on_how_much_is_drawn_at_once() -> None:
    count = 4 * BLOCK + 100
    one = RandomTapes(1, "cpu")
    one.rewind(5, range(2, 3))
    whole = one.take(count)[0]
    assert abs(whole.float().mean()) < 1000
    assert abs(whole.float().std() - 65536 / 12**0.5) < 400
    several = RandomTapes(1, "cpu")
    for _ in range(2):  # the second time it knows how much will be asked for
        several.rewind(5, range(1, 4))
        pieces = [several.take(size)[1] for size in (1, 6, count - 7)]
        assert torch.equal(torch.cat(pieces), whole)
    several.rewind(5, range(2, 3))
    assert torch.equal(several.take(3)[0], whole[:3])


def test_buffers_of_the_models_own_are_means_and_whole_numbers_are_exact() -> None:
    model = nn.Module()
    model.register_buffer("seen", torch.tensor([1.0, 2.0]))
    model.register_buffer("count", torch.tensor([-5, 2**62 + 1]))
    model.register_buffer("flag", torch.tensor(False))
    ranks = []
    for forwards in ([range(2)], [range(2, 3)]):
        buffers = TrackedBuffers(model, ["seen", "count", "flag"])
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
