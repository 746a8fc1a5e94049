"""Bad input of every kind: the message names the key and where it was set, what was given, and the nearest right thing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.load import compose, run_application
from launcher.core.errors import ConfigError, UsageError

pytestmark = pytest.mark.unit
Write = Callable[[str, str], None]
NET = "_target_: my.Net\n"
LINE = "(command line)"


@pytest.mark.parametrize(
    ("value", "key", "given"),
    [
        ("a: .nan", "model.a", "nan"),
        ("a: -.inf", "model.a", "-inf"),
        ("a: 1e400", "model.a", "inf"),
        ("a: [1, {b: .nan}]", "model.a.1.b", "nan"),
        ("a: ${oc.decode:nan}", "model.a", "nan"),
        ("a: 123456789012345678901", "model.a", "21 digits"),
        ("a: !!binary aGk=", "model.a", "bytes b'hi'"),
        ("a: !!python/object/apply:pathlib.PosixPath [x]", "model.a", "PosixPath"),
        ('a: "\\ud800"', "model.a", "ud800"),
        ("1: a", "model", "int 1"),
        ("a: {true: b}", "model.a", "bool True"),
        ("a: !!timestamp 2026-01-01", "a", "'date'"),
        ("a: !!set {x, y}", "a", "'set'"),
        ("a: {null: b}", "a", "'NoneType'"),
        ("a: {!!timestamp 2026-01-01: b}", "", "date"),
        ("a: &a [*a]", "", "recursion"),
    ],
)
def test_a_value_that_json_has_not_is_refused_with_its_file(tmp_path: Path, write: Write, value: str, key: str, given: str) -> None:
    write("model/mine.yaml", f"{NET}{value}\n")
    error = refused(tmp_path, "model=mine")
    assert error.where == (f"{key} (configs/model/mine.yaml)" if key else "configs/model/mine.yaml")
    assert given in str(error)


def refused(folder: Path, *arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        run_application(arguments, folder=folder)
    assert caught.value.exit_code == 2
    assert [path.name for path in folder.iterdir() if path.name != "configs"] == []
    return caught.value


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        ("model=resnt", f"model {LINE}", ["resnt", "did you mean resnet or", "looked for model/resnt.yaml in"]),
        ("+model=resnt", f"model {LINE}", ["did you mean resnet or"]),
        ("-m model=resnet,resnt", f"model {LINE}", ["did you mean resnet or"]),
        ("modle=resnet", f"modle {LINE}", ["no such key: modle", "did you mean model"]),
        ("trainr.steps=5", f"trainr {LINE}", ["did you mean trainer"]),
        ("trainer.stepz=5", f"trainer.stepz {LINE}", ["given:    5", "did you mean steps?", "configs/trainer/default.yaml"]),
        ("+trainer.stepz=5", f"trainer.stepz {LINE}", ["did you mean steps?"]),
        ("tracking.a.b=5", f"tracking.a {LINE}", ["one of entity, mode, name, project"]),
        ("trainer.steps.a=5", f"trainer.steps {LINE}", ["nothing under it"]),
        ("backend.node_selector.a=b", f"backend.node_selector {LINE}", ["no such key: backend.node_selector"]),
        (
            "environment.HF_TOKEN=hf_0123",
            f"environment.HF_TOKEN {LINE}",
            ["a secret would be recorded", "environment.HF_TOKEN.secret=HF_TOKEN"],
        ),
        ("environment.A.secrt=B", f"environment.A.secrt {LINE}", ["did you mean secret?"]),
        ("environment.A=true", f"environment.A {LINE}", ["""'environment.A="true"'"""]),
        ("backend=kuberay backend.image=a backend.cpu=1.5", f"backend.cpu {LINE}", ["""'backend.cpu="1.5"'"""]),
        ("model.dropout=18", f"model.dropout {LINE}", ["configs/model/resnet.yaml", "+model.dropout=18 adds an argument"]),
        ("hydra.foo=1", f"hydra.foo {LINE}", ["no such key"]),
        ("~nothing", f"nothing {LINE}", ["no such key"]),
        ("++model=mlp", "command line", ["expected: model=mlp"]),
        ("model@a=mlp", f"model@a {LINE}", ["given:    mlp", "did you mean model"]),
        ("trainer=5", f"trainer {LINE}", ["takes the name of one of its choices", "trainer.KEY=value"]),
        ("optimizer.lr=nan", f"optimizer.lr {LINE}", ["given:    nan", "a finite number"]),
        ("-m optimizer.lr=0.1,-inf", f"optimizer.lr {LINE}", ["job 2 of 2", "given:    -inf"]),
        ("trainer.grad_clip_norm=inf", f"trainer.grad_clip_norm {LINE}", ["given:    inf", "a finite number"]),
        ("elastic.cooldown_s=-inf", f"elastic.cooldown_s {LINE}", ["given:    -inf"]),
        ("seed=123456789012345678901", f"seed {LINE}", ["21 digits", "64 bits"]),
        ("+model.a={1:2}", f"model.a {LINE}", ["int 1", '"1"']),
        ("trainer.steps=abc", f"trainer.steps {LINE}", ["'abc'", "a whole number"]),
        ("trainer.steps=", f"trainer.steps {LINE}", ["a whole number"]),
        ("trainer.precision=fp16", f"trainer.precision {LINE}", ["'fp16'", "did you mean bf16"]),
        ("trainer.steps=5 trainer.epochs=2", f"trainer.steps {LINE}, trainer.epochs {LINE}", ["steps=5 and epochs=2"]),
        ("trainer.micro_batch_size=7", f"trainer.micro_batch_size {LINE}", ["a divisor of 64: 1, 2, 4"]),
        ("workers=4..1", f"workers {LINE}", ["4..1", "min <= max"]),
        ("workers=99", f"workers {LINE}", ["more workers than shards", "larger trainer.global_batch_size"]),
        ("elastic.exact=true trainer.fuse=on", f"trainer.fuse {LINE}", ["one shard at a time", "elastic.exact=false"]),
        ("name=Not_Good!", "command line", ["cannot be read"]),
        ("name=Bad_", f"name {LINE}", ["Bad_", "1 to 63 of"]),
        ("model=resnet,mlp", f"model {LINE}", ["several values", "-m runs one job for each"]),
        ("seed=range(1,3)", f"seed {LINE}", ["several values"]),
        ("resnet", "command line", ["did you mean model=resnet?"]),
        ("seed=[1", "command line", ["cannot be read", "seed=[1"]),
        ("runs=${nowhere}", f"runs {LINE}", ["'nowhere' not found"]),
        ("--config-dir nowhere", f"--config-dir {LINE}", ["nowhere"]),
        ("--config-path nowhere", f"--config-path {LINE}", ["nowhere"]),
        ("--config-name tran", "command line", ["did you mean train?"]),
        ("--cfg jobb", "command line", ["jobb"]),
        ("--cfg job --package nope", "command line", ["nope"]),
        ("--cfg job --info all", "command line", ["Only one of"]),
        ("--resolve", "command line", ["--cfg"]),
        ("--no-such-flag", "command line", ["--no-such-flag"]),
    ],
)
def test_a_bad_command_line(folder: Path, arguments: str, where: str, said: list[str]) -> None:
    error = refused(folder, *arguments.split(" "))
    assert error.where == where
    assert [part for part in said if part not in str(error)] == []


@pytest.mark.parametrize(
    ("file", "text", "choice", "where", "said"),
    [
        ("trainer/mine.yaml", "steps: 5\nstepz: 6\n", "trainer=mine", "trainer.stepz (configs/trainer/mine.yaml)", "did you mean steps?"),
        ("trainer/mine.yaml", "steps: five\n", "trainer=mine", "trainer.steps (configs/trainer/mine.yaml)", "'five'"),
        ("checkpoint/mine.yaml", "defaults: [default]\nkeep: 0\n", "checkpoint=mine", "checkpoint.keep (configs/checkpoint/mine.yaml)", "more than 0"),
        ("experiment/mine.yaml", "# @package _global_\nworkers: 99\n", "+experiment=mine", "workers (configs/experiment/mine.yaml)", "99 workers"),
        ("experiment/mine.yaml", "# @package _global_\nwrkers: 2\n", "experiment=mine", "wrkers (configs/experiment/mine.yaml)", "workers?"),
        ("experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /model: resnt\n", "experiment=mine", "model (configs/experiment/mine.yaml)", "resnet or"),
        ("model/mine.yaml", f"{NET}width: [1\n", "model=mine", "configs/model/mine.yaml, line 3", "not valid YAML"),
        ("model/mine.yaml", f"{NET}a: 1\na: 2\n", "model=mine", "configs/model/mine.yaml, line 3", "duplicate key"),
        ("model/mine.yaml", "width: 1\n", "model=mine", "model._target_ (configs/model/mine.yaml)", "what to build"),
        ("model/mine.yaml", "- 1\n", "model=mine", "model (configs/model/mine.yaml)", "a mapping"),
        ("model/mine.yaml", f"{NET}width: ${{nowhere}}\n", "model=mine", "model.width (configs/model/mine.yaml)", "'nowhere' not found"),
        ("model/mine.yaml", f"{NET}width: ???\n", "model=mine", "model.width (configs/model/mine.yaml)", "Missing"),
        ("model/mine.yaml", f"{NET}width: \x07\n", "model=mine", "configs/model/mine.yaml", "not valid YAML"),
        ("train.yaml", "defaults: [trainer: default]\n", "trainer.steps=1", "workers", "a key is missing: workers"),
    ],
)  # fmt: skip
def test_a_bad_file(folder: Path, write: Write, file: str, text: str, choice: str, where: str, said: str) -> None:
    write(file, text)
    error = refused(folder, choice)
    assert error.where == where
    assert said in str(error)


def test_a_key_that_everybody_has_to_set_says_how(folder: Path) -> None:
    error = refused(folder, "backend=kuberay")
    assert error.where.startswith("backend.image (")
    assert error.expected == "backend.image=VALUE"


def test_a_notebook_is_told_the_same(folder: Path) -> None:
    for override in ("model=resnt", "trainer.stepz=5", "trainer.steps=abc", "seed=1,2", "seed=[1"):
        with pytest.raises(UsageError) as caught:
            compose([override], folder=folder)
        assert str(caught.value) == str(refused(folder, override))
