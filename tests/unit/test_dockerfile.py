"""The image's recipe, as far as it can be checked without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from launcher import __version__
from launcher.backends.kuberay.rayjob import USER

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of each, with continued lines joined and comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def every(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def arguments() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for rest in every("ARG"):
        name, _, value = rest.partition("=")
        found.setdefault(name, set()).add(value.strip('"'))
    return found


def pinned(package: str) -> set[str]:
    return set(re.findall(rf"^{package}==(\S+)", CONSTRAINTS, re.MULTILINE))


def test_python_is_pinned_and_one_that_launcher_runs_on() -> None:
    (base,) = arguments()["BASE"]
    match = re.fullmatch(r"python:(3\.\d+)(\.\d+)-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert match is not None
    least = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])
    assert least is not None
    assert tuple(map(int, match[1].split("."))) >= tuple(map(int, least[1].split(".")))
    assert f'launcher.versions.python="{match[1]}{match[2]}"' in TEXT
    assert f'base.name="docker.io/library/{base.partition("@")[0]}"' in TEXT
    assert every("FROM") == ["${BASE} AS packages", "packages AS wheel", "packages"]


def test_the_labels_say_the_versions_that_are_pinned() -> None:
    assert arguments()["LAUNCHER_VERSION"] == {__version__} == {PROJECT["version"]}
    assert arguments()["RAY_VERSION"] == pinned("ray")
    assert arguments()["TORCH_VERSION"] == pinned("torch")


def test_packages_are_checked_by_their_hashes() -> None:
    install, _wheel, ours = every("RUN")
    assert "--no-deps --require-hashes -r /tmp/rest.txt" in install
    assert "--no-deps /dist/*.whl" in ours
    blocks = re.split(r"^(?=[a-z0-9])", CONSTRAINTS, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_what_is_left_out_for_another_torch_is_torch_with_its_cuda() -> None:
    match = re.search(r"skip = /\^\((.*?)\)/", TEXT)
    assert match is not None
    left_out = {name for name in re.findall(r"^([a-z0-9-]+==)", CONSTRAINTS, re.MULTILINE) if re.match(match[1], name)}
    assert {"torch==", "triton==", "nvidia-nccl-cu13==", "cuda-toolkit=="} <= left_out
    assert {name for name in left_out if not name.startswith(("nvidia-", "cuda-"))} == {"torch==", "triton=="}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for rest in every("COPY") if not rest.startswith("--from") for source in rest.split()[:-1]]
    assert {"launcher", "configs", "models", "constraints.txt", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert ignored.index("*") < ignored.index("!launcher")
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*shipped["packages"], *shipped["force-include"]} <= set(copied)


def test_nobody_is_root_and_no_secret_is_baked_in() -> None:
    assert every("USER")[-1] == f"{USER}:{USER}"
    assert not [name for name in arguments() if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]
    assert every("ENTRYPOINT") == []  # the operator says what a container runs
