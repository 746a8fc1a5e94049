"""What goes wrong in a running job: said clearly, once, with what to do next."""

from __future__ import annotations

import pytest

from tests.support.jobs import Project

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_a_mistake_in_the_users_code_shows_their_traceback_once(project: Project) -> None:
    status = project.train("workers=2", "model.fail_at=12", "name=mine", check=1)
    assert status["state"] == "FAILED"
    assert status["reason"].count("ZeroDivisionError: a mistake in the user's model") == 1
    assert "models/slow.py" in status["reason"]
    assert "launcher/training" not in status["reason"]
    assert "rank" in status["reason"]
    assert "step" in status["reason"]
    assert "Traceback" in project.launch("status", "mine", "--runs", project.runs).stdout


def test_a_loss_that_is_not_a_number_stops_the_job_at_its_step(project: Project) -> None:
    status = project.train("optimizer=sgd", "optimizer.lr=1e30", "name=wild", check=1)
    assert status["state"] == "FAILED"
    assert "step" in status["reason"]
    assert "Traceback" not in status["reason"]


def test_a_model_that_does_not_fit_the_task_is_refused_before_training(project: Project) -> None:
    status = project.train("model.classes=3", "name=odd", check=None)
    assert status["state"] == "FAILED"
    assert status["step"] == 0
    assert "3" in status["reason"]
    assert "Traceback" not in status["reason"]


def test_data_that_cannot_be_read_is_named(project: Project) -> None:
    (project.folder / "models" / "broken.py").write_text("class Broken:\n    def __init__(self):\n        open('/nowhere/data.bin')\n")
    (project.folder / "configs" / "data").mkdir()
    (project.folder / "configs" / "data" / "broken.yaml").write_text("_target_: models.broken.Broken\n")
    status = project.train("data=broken", "name=dry", check=None)
    assert status["state"] == "FAILED"
    assert "/nowhere/data.bin" in status["reason"]


def test_bad_configuration_leaves_nothing_behind(project: Project) -> None:
    for words, named in (
        (["trainer.stepz=3"], "trainer.stepz"),
        (["model=resnett"], "resnet"),
        (["trainer.steps=many"], "trainer.steps"),
        (["workers=3..2"], "workers"),
        (["workers=200"], "workers"),
        (["trainer.micro_batch_size=7"], "trainer.micro_batch_size"),
        (["elastic.exact=true", "trainer.fuse=on"], "trainer.fuse"),
        (["gpu=1"], "gpu"),
    ):
        refused = project.launch("train", *project.job(*words), check=None)
        assert refused.returncode in (2, 4), (words, refused.stderr)
        assert named in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr, refused.stderr
    assert not (project.folder.parent / "runs").exists()
