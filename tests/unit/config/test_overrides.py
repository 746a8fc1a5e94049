import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.overrides import normalise, open_mappings, read_word, settle_length

pytestmark = pytest.mark.unit
GROUPS = {"model", "experiment", "hydra/launcher"}
KEYS = {"trainer.steps", "seed", "model._target_"}


def plain(*overrides: str) -> list[str]:
    return normalise(overrides, groups=GROUPS, has_key=KEYS.__contains__)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("+model=resnet", "model=resnet"),
        ("+experiment=quick", "experiment=quick"),
        ("+model=resnet,mlp", "model=resnet,mlp"),
        ("+model=[a,b]", "model=[a,b]"),
        ("+hydra/launcher=basic", "hydra/launcher=basic"),
        ("+trainer.steps=5", "trainer.steps=5"),
        ("+seed='1, 2'", "seed='1, 2'"),
        ("+trainer.steps=", "trainer.steps="),
    ],
)
def test_a_plus_before_what_is_there_says_nothing(given: str, meant: str) -> None:
    assert plain(given) == [meant]


@pytest.mark.parametrize(
    "override",
    [
        "model=resnet",
        "workers=1..4",
        "+model.depth=18",
        "+new=1",
        "++trainer.steps=5",
        "++model=resnet",
        "~model",
        "~trainer.steps=5",
        "+model@backbone=resnet",
        "+seed={a: 1}",
        "+model={depth: 18}",
        "+trainer.steps=[1,2]",
        "name='a=b, +c'",
        "nonsense",
        "+",
        "",
    ],
)
def test_everything_else_stays_as_it_is(override: str) -> None:
    assert plain(override) == [override]


@given(st.lists(st.text(max_size=20), max_size=5))
def test_normalising_only_ever_takes_a_plus_away_and_only_once(overrides: list[str]) -> None:
    once = plain(*overrides)
    assert all(after in (before, before.removeprefix("+")) for before, after in zip(overrides, once, strict=True))
    assert normalise(once, groups=GROUPS, has_key=KEYS.__contains__) == once


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["trainer.steps=100"], ["++trainer.epochs=null"]),
        (["trainer.epochs=2", "seed=1"], ["++trainer.steps=null"]),
        (["++trainer.steps=1,2"], ["++trainer.epochs=null"]),
        (["trainer.steps=100", "trainer.epochs=null"], []),
        (["trainer.steps=100", "trainer.epochs=3"], []),
        (["trainer.steps=null"], []),
        (["~trainer.steps"], []),
        (["seed=1"], []),
    ],
)
def test_the_length_that_is_named_replaces_the_other(given: list[str], added: list[str]) -> None:
    assert settle_length(given) == [*given, *added]


def test_a_word_is_cut_at_its_first_equals_sign() -> None:
    word = read_word("+model@x.y=a=b")
    assert word is not None
    assert (word.sign, word.key, word.package, word.value) == ("+", "model", "@x.y", "a=b")
    assert read_word("two words=1") is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("environment.A=1", "++environment.A=1"),
        ("environment.A=/a,/b", "++environment.A=/a,/b"),
        ("environment.A_KEY.secret=a/b", "++environment.A_KEY.secret=a/b"),
        ("environment={A: 1}", "++environment={A: 1}"),
        ("environment=team", "environment=team"),
        ("+environment.A=1", "+environment.A=1"),
        ("~environment.A", "~environment.A"),
        ("environment.A", "environment.A"),
        ("environmental.A=1", "environmental.A=1"),
        ("seed=1", "seed=1"),
    ],
)
def test_a_person_adds_keys_under_a_mapping_without_a_sign(given: str, meant: str) -> None:
    assert open_mappings([given], {"environment"}.__contains__) == [meant]
