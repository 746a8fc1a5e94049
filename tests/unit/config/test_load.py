import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir, version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from launcher.config.load import apply_overrides, complete, compose, run_application
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.errors import ConfigError
from launcher.record.desired import WorkerBounds
from launcher.record.variables import SecretReference

pytestmark = pytest.mark.unit
Write = Callable[[str, str], None]


def one(*arguments: str, folder: Path) -> JobConfig:
    (config,) = run_application(arguments, folder=folder)
    return config


def test_the_shipped_configuration_is_complete(folder: Path) -> None:
    config = compose([], folder=folder)
    assert (config.name, config.runs, config.workers.max, config.gpu) == (None, "./runs", 1, None)
    assert (config.backend.name, config.model.target) == ("local", "models.resnet.ResNet")


@pytest.mark.parametrize("overrides", [["+model=mlp", "+seed=3", "+workers=1..4"], ["model=mlp", "seed=3", "workers=1..4"]])
def test_a_plus_makes_no_difference_and_application_and_compose_agree(folder: Path, overrides: list[str]) -> None:
    config = one(*overrides, folder=folder)
    assert config == compose(overrides, folder=folder)
    assert (config.model.target, config.seed, config.workers) == ("models.mlp.MLP", 3, WorkerBounds(min=1, max=4, target=4))


def test_steps_on_the_command_line_replace_epochs_in_a_file_and_the_other_way_round(folder: Path) -> None:
    by_steps = compose(["trainer.steps=7"], folder=folder).trainer
    by_epochs = compose(["experiment=quick", "+trainer.epochs=0.5"], folder=folder).trainer
    assert (by_steps.steps, by_steps.epochs, by_epochs.steps, by_epochs.epochs) == (7, None, None, 0.5)


def test_runs_come_from_the_command_line_then_the_environment_then_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_RUNS", "s3://bucket/runs")
    assert compose([], folder=folder).runs == "s3://bucket/runs"
    assert compose(["runs=./mine"], folder=folder).runs == "./mine"


def test_a_configs_folder_of_the_user_is_searched_first(folder: Path, write: Write) -> None:
    write("model/mine.yaml", "_target_: my.Net\nwidth: 8\n")
    write("data/digits.yaml", "_target_: my.Digits\n")
    config = one("model=mine", "model.width=9", "+model.depth=2", folder=folder)
    assert (config.model.target, config.model.params) == ("my.Net", {"width": 9, "depth": 2})
    assert config.data.target == "my.Digits"
    assert config.optimizer.target.startswith("torch.optim")


def test_a_train_yaml_of_the_user_wins_and_writes_no_more_than_ours(folder: Path, write: Write) -> None:
    shipped = Path(__file__).parents[3] / "configs" / "train.yaml"
    write("train.yaml", shipped.read_text().replace("seed: 0", "seed: 42"))
    assert one(folder=folder).seed == 42
    assert os.listdir(folder) == ["configs"]


def test_one_more_folder_and_another_configuration_can_be_named(folder: Path, write: Write) -> None:
    write("../more/model/extra.yaml", "_target_: my.Extra\n")
    write("../other/base.yaml", "defaults:\n  - train\n  - _self_\nseed: 5\n")
    assert one("--config-dir", "more", "model=extra", folder=folder).model.target == "my.Extra"
    assert one("seed=6", "--config-path", "other", "--config-name", "base", "workers=2", folder=folder).seed == 6


def test_a_sweep_gives_every_combination_and_writes_nothing(folder: Path) -> None:
    configs = run_application(["-m", "+model=resnet,mlp", "seed=1,2"], folder=folder)
    assert [(config.model.target.rpartition(".")[2], config.seed) for config in configs] == [
        ("ResNet", 1),
        ("ResNet", 2),
        ("MLP", 1),
        ("MLP", 2),
    ]
    assert os.listdir(folder) == []


def test_a_sweep_is_refused_as_a_whole_for_one_bad_job(folder: Path) -> None:
    with pytest.raises(ConfigError, match="job 2 of 3") as caught:
        run_application(["-m", "workers=1,99,2"], folder=folder)
    assert caught.value.where == "workers (command line)"


def test_overrides_may_hold_interpolations(folder: Path) -> None:
    config = one("name=${trainer.precision}-${seed}", "+model.note=${hydra:job.name}", folder=folder)
    assert (config.name, config.model.params["note"]) == ("fp32-0", "train")


def test_nothing_of_hydra_is_left_behind_in_the_process(folder: Path) -> None:
    store_before, arguments = ConfigStore.instance().load("hydra/config.yaml").node, list(sys.argv)
    run_application(["seed=1"], folder=folder)
    with pytest.raises(ConfigError):
        run_application(["model=nothing"], folder=folder)
    assert ConfigStore.instance().load("hydra/config.yaml").node == store_before
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert sys.argv == arguments
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_compose_leaves_a_hydra_that_is_in_use_as_it_found_it(folder: Path, write: Write) -> None:
    write("mine.yaml", "a: 1\n")
    with initialize_config_dir(str(folder / "configs"), version_base="1.2"):
        theirs, base = GlobalHydra.instance().hydra, version.getbase()
        assert compose(["+model=mlp"], folder=folder).model.target == "models.mlp.MLP"
        assert GlobalHydra.instance().hydra is theirs
        assert version.getbase() == base
        assert hydra_compose("mine").a == 1
        groups = theirs.config_loader.list_groups("") if theirs else []
        assert "model" not in groups


def test_compose_works_in_a_running_event_loop_and_in_threads(folder: Path) -> None:
    async def inside() -> int:
        return compose(["seed=1"], folder=folder).seed

    seeds: list[int] = []
    threads = [threading.Thread(target=lambda seed=seed: seeds.append(compose([f"seed={seed}"], folder=folder).seed)) for seed in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [asyncio.run(inside()), *sorted(seeds)] == [1, 2, 3]


def test_values_of_a_configuration_can_be_changed_later(folder: Path) -> None:
    before = compose([], folder=folder)
    after = apply_overrides(before, ["+trainer.steps=20", "workers=1..2", "optimizer.lr=0.5", "runs='a b'"])
    assert (after.trainer.steps, after.trainer.epochs, after.workers.max, after.runs) == (20, None, 2, "a b")
    assert after.optimizer.params == {**before.optimizer.params, "lr": 0.5}
    assert apply_overrides(before, []) == before


def test_a_person_writes_keys_of_their_own_under_a_mapping(folder: Path, write: Write) -> None:
    write("experiment/team.yaml", "# @package _global_\nenvironment: {DATA_ROOT: /a, SIZE: 3}\n")
    words = ["experiment=team", "environment.DATA_ROOT=/b", "environment.HF_TOKEN.secret=team/token", "environment.NOTE='a=b ${seed}'"]
    config = one(*words, folder=folder)
    assert config == compose(words, folder=folder)
    assert config.environment == {"DATA_ROOT": "/b", "SIZE": "3", "HF_TOKEN": SecretReference(secret="team/token"), "NOTE": "a=b 0"}
    kube = compose(["backend=kuberay", "backend.image=a", "backend.node_selector={gpu: big}", "backend.overlay.spec.a=1"], folder=folder)
    assert isinstance(kube.backend, KubeRayConfig)
    assert (kube.backend.node_selector, kube.backend.overlay) == ({"gpu": "big"}, {"spec": {"a": 1}})


def test_keys_of_a_mapping_come_and_go_later(folder: Path) -> None:
    before = compose(["environment={A: one, B: two}"], folder=folder)
    after = apply_overrides(before, ["environment.A=three", "~environment.B", "environment.C=null", "environment.D_KEY.secret=D"])
    assert after.environment == {"A": "three", "C": None, "D_KEY": SecretReference(secret="D")}
    assert apply_overrides(after, ["environment.D_KEY.secret=E"]).environment["D_KEY"] == SecretReference(secret="E")
    with pytest.raises(ConfigError, match=r"no such key: environment\.X"):
        apply_overrides(before, ["~environment.X"])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.stepz=5", "did you mean steps?"),
        ("+trainer.new=5", "there is no such key: trainer.new"),
        ("model=mlp", "only values can be changed here"),
        ("~seed", "only values can be changed here"),
        ("seed=1,2", "several values"),
        ("seed=[1", "cannot be read"),
        ("seed", "cannot be read"),
        ("trainer.steps=x", "trainer.steps (command line)"),
        ("workers=99", "workers (command line)"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(folder: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(compose([], folder=folder), [override])
    assert part in str(caught.value)


def test_completion_knows_groups_choices_keys_and_values(folder: Path, write: Write) -> None:
    write("model/mine.yaml", "_target_: my.Net\nwidth: 8\n")
    assert {"model=", "trainer.", "seed=", "experiment="} <= set(complete([], "", folder=folder))
    assert complete([], "+model=m", folder=folder) == ["+model=mine", "+model=mlp"]
    assert complete(["--cfg", "job", "+model=mine"], "model.w", folder=folder) == ["model.width="]
    assert {"trainer.precision=bf16", "trainer.precision=fp32"} <= set(complete([], "trainer.precision=", folder=folder))
    assert complete(["model=nothing"], "trainer.st", folder=folder) == []
    assert complete([], "'", folder=folder) == []
