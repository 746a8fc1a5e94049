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
