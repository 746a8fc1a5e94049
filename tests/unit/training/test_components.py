from __future__ import annotations

import sys
from fractions import Fraction
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
    ("torch.optim", "cannot be called", "class or function"),
    ("json.tool", "cannot be called", "class or function"),  # a module that nothing has imported
    ("nowhere", "there is no module nowhere", ""),
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


def test_nested_components_are_built() -> None:
    nested = Component(target="builtins.dict", params={"a": {"_target_": "builtins.dict", "b": 1}, "c": 2})
    assert build(nested, key="data") == {"a": {"b": 1}, "c": 2}


def test_what_is_offered_goes_to_whoever_has_such_a_parameter() -> None:
    inner = {"_target_": "fractions.Fraction", "numerator": 1}
    pair = Component(target="collections.OrderedDict", params={"a": inner, "b": [{**inner, "denominator": 3}]})
    assert build(pair, key="data", offered={"denominator": 2}) == {"a": Fraction(1, 2), "b": [Fraction(1, 3)]}


def test_components_in_lists_and_mappings_are_built() -> None:
    made = {"_target_": "builtins.dict", "b": 1}
    params = {"several": [made, {"inner": [made]}], "plain": [1, {"a": 2}]}
    built = build(Component(target="builtins.dict", params=params), key="data")
    assert built == {"several": [{"b": 1}, {"inner": [{"b": 1}]}], "plain": [1, {"a": 2}]}
    with pytest.raises(ConfigError) as caught:
        build(Component(target="builtins.dict", params={"several": [{"_target_": "math.nothing"}]}), key="data")
    assert caught.value.where == "data.several.0._target_"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("nets_of_mine.Net", "in the package"),
        ("nets_of_mine.Again", "in the module"),
        ("nets_of_mine.small.Net", "in the module"),
        ("nets_of_mine.small.Net.Block", "nested"),
        ("nets_of_mine.Net.Block", "nested in the package"),
        ("one_file_of_mine.Net", "in one file"),
        ("one_file_of_mine.Net.make", "made"),
    ],
)
def test_a_target_is_found_as_an_import_finds_it(path: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a package, in a module that a name of its package hides, in one file; nested, and imported from elsewhere."""
    package = tmp_path / "nets_of_mine"
    package.mkdir()
    nested = "class Net:\n    word = {!r}\n    class Block:\n        word = {!r}\n"
    hidden = "from nets_of_mine.small import Net as Again\ndef small(): pass\n"
    (package / "__init__.py").write_text(hidden + nested.format("in the package", "nested in the package"))
    (package / "small.py").write_text(nested.format("in the module", "nested"))
    made = "    @classmethod\n    def make(cls):\n        made = cls()\n        made.word = 'made'\n        return made\n"
    (tmp_path / "one_file_of_mine.py").write_text("class Net:\n    word = 'in one file'\n" + made)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert build(Component(target=path), key="model").word == found
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("nets_of_mine", "one_file_of_mine")]:
            del sys.modules[name]


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
