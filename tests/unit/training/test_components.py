from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.config.schema import Component
from launcher.core.errors import ConfigError
from launcher.training.components import build

pytestmark = pytest.mark.unit
BAD_PATHS = [
    ("nowhere.at_all.Thing", "there is no module nowhere", ""),
    ("torch.optim.AdamV", "has no AdamV", "Adam"),
    ("torch.optom.Adam", "torch has no optom", "optim"),
    ("launcher.training.taskz.Classification", "launcher.training has no taskz", "tasks"),
    ("math.pi", "cannot be called", ""),
]


@pytest.mark.parametrize(("path", "what", "near"), BAD_PATHS)
def test_a_path_that_leads_nowhere_is_answered_with_what_is_near(path: str, what: str, near: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        build(Component(target=path), key="model")
    assert caught.value.where == "model._target_"
    assert caught.value.given == path
    assert near in caught.value.expected


def test_a_parameter_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="no parameter moment") as caught:
        build(Component(target="torch.optim.SGD", params={"moment": 0.9}), [], key="optimizer")
    assert caught.value.where == "optimizer.moment"
    assert "momentum" in caught.value.expected


def test_a_parameter_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="classes") as caught:
        build(Component(target="models.mlp.MLP", params={"inputs": 3}), key="model")
    assert caught.value.where == "model"


def test_nested_components_are_built_and_replacements_win() -> None:
    nested = Component(target="builtins.dict", params={"a": {"_target_": "builtins.dict", "b": 1}, "c": 2})
    assert build(nested, key="data", c=3) == {"a": {"b": 1}, "c": 3}


def test_errors_of_the_users_own_come_out_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_broken.py").write_text("import a_module_that_is_missing\n")
    (tmp_path / "mine.py").write_text("def make():\n    raise ZeroDivisionError('mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        build(Component(target="mine_broken.Thing"), key="model")
    with pytest.raises(ZeroDivisionError) as caught:
        build(Component(target="mine.make"), key="model")
    assert caught.traceback[-1].path == tmp_path / "mine.py"
    del sys.modules["mine"]
