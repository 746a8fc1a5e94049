from __future__ import annotations

import pytest
import torch

from models.digits import Digits
from models.mlp import MLP
from models.resnet import ResNet
from models.synthetic import Synthetic

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.69), (34, 21.80), (50, 25.56)])
def test_resnets_have_the_size_of_the_paper(depth: int, millions: float) -> None:
    with torch.device("meta"):
        model = ResNet(depth, classes=1000, channels=3, stem="imagenet")
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_small_stem_keeps_small_images() -> None:
    model = ResNet(18, classes=10, channels=1, width=4)
    assert model.stem(torch.zeros(2, 1, 8, 8)).shape == (2, 4, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("arguments", [{"depth": 20}, {"stem": "large"}])
def test_a_resnet_that_does_not_exist_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"18, 34, 50|small or imagenet"):
        ResNet(**arguments)


def test_the_perceptron_flattens() -> None:
    assert MLP(64, 10, hidden=[8], dropout=0.5)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_digits_are_split_the_same_way_every_time() -> None:
    data = Digits()
    assert (len(data.train), len(data.test)) == (1442, 355)
    shares = data.test.labels.bincount() / (data.test.labels.bincount() + data.train.labels.bincount())
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    assert data.train.images.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train.images.std().item() == pytest.approx(1.0, abs=1e-5)
    images, labels = data.test.batch(torch.tensor([3, 5]))
    assert torch.equal(images[1], data.test[5][0])
    assert labels.tolist() == [data.test[3][1].item(), data.test[5][1].item()]
    assert torch.equal(Digits().test.images, data.test.images)


def test_synthetic_images_can_be_learned_and_are_the_same_every_time() -> None:
    data = Synthetic(size=64, test_size=8)
    assert data.train[0][0].shape == (1, 8, 8)
    assert (len(data.train), len(data.test)) == (64, 8)
    assert torch.equal(Synthetic(size=64, test_size=8).train.images, data.train.images)
