"""Every file under configs/ composes into a valid configuration."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from launcher.config.load import compose
from launcher.config.schema import (
    CheckpointConfig,
    CodeConfig,
    ElasticConfig,
    JobConfig,
    KubeRayConfig,
    LocalConfig,
    RayConfig,
    ResourcesConfig,
    TrackingConfig,
)
from launcher.config.schema import TrainerConfig as Trainer
from launcher.config.shipped import shipped_folder

pytestmark = pytest.mark.unit
CONFIGS = shipped_folder() / "configs"
CHOICES = sorted(f"{path.parent.relative_to(CONFIGS)}={path.stem}" for path in CONFIGS.glob("*/**/*.yaml"))
MUST_BE_SAID = {"backend=kuberay": ["backend.image=registry/launcher:1"], "backend=ray": ["backend.address=http://head:8265"]}
TYPES = {
    "trainer": Trainer,
    "elastic": ElasticConfig,
    "resources": ResourcesConfig,
    "checkpoint": CheckpointConfig,
    "backend/local": LocalConfig,
    "backend/kuberay": KubeRayConfig,
    "backend/ray": RayConfig,
    "tracking": TrackingConfig,
    "code": CodeConfig,
}


@pytest.fixture(autouse=True)
def _nothing_decides_but_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCHER_RUNS", raising=False)


def test_all_files_are_looked_at() -> None:
    assert [path.name for path in CONFIGS.glob("*.yaml")] == ["train.yaml"]
    assert {"model=resnet", "trainer=default", "experiment=quick"} <= set(CHOICES)
    assert not [path for path in CONFIGS.rglob("*") if path.is_file() and path.suffix != ".yaml"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_is_valid(tmp_path: Path, choice: str) -> None:
    assert isinstance(compose([choice, *MUST_BE_SAID.get(choice, ())], folder=tmp_path), JobConfig)


@pytest.mark.parametrize("group", TYPES)
def test_a_group_shows_every_key_that_it_has(group: str) -> None:
    """What is not in the file could be set with + alone, and nobody would find it."""
    for file in (CONFIGS / group).glob("*.yaml") if (CONFIGS / group).is_dir() else [(CONFIGS / group).with_suffix(".yaml")]:
        assert set(yaml.safe_load(file.read_text())) == {item.name for item in fields(TYPES[group])}, file


def test_the_top_shows_every_key_that_is_not_a_group() -> None:
    shown = set(yaml.safe_load((CONFIGS / "train.yaml").read_text())) - {"defaults", "hydra"}
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert shown == {item.name for item in fields(JobConfig)} - groups
