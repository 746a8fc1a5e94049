"""A configuration that cannot be is refused in words, before anything is written or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli.main import main
from tests.support.jobs import Project, write_project

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trainer.stepz=3"], "trainer.stepz"),
        (["model=resnett"], "resnet"),
        (["trainer.steps=many"], "trainer.steps"),
        (["workers=3..2"], "workers"),
        (["workers=200"], "workers"),
        (["trainer.micro_batch_size=7"], "trainer.micro_batch_size"),
        (["elastic.exact=true", "trainer.fuse=on"], "trainer.fuse"),
        (["gpu=1"], "gpu"),
    ],
)
def test_bad_configuration_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_RAY_DIR", str(tmp_path / "ray"))
    monkeypatch.setenv("PATH", "")  # where this machine's GPUs would be asked for
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    runs = tmp_path / "runs"
    code = main(["train", *Project(tmp_path, tmp_path / "ray", str(runs)).job(*words)])
    said = capfd.readouterr().err
    assert code in (2, 4), said
    assert named in said
    assert "Traceback" not in said
    assert not runs.exists()
    assert not (tmp_path / "ray").exists()
