"""A whole job with extra packages: its code imports what was installed for it, or the run fails with pip's own words."""

from __future__ import annotations

import pytest

from launcher import jobs
from launcher.config.load import compose
from launcher.jobs import submitting
from launcher.jobspec.packages import read_requirements
from tests.distributed.test_installing_packages import wheel
from tests.support.jobs import Project

pytestmark = pytest.mark.ray
TOOLED = "import little_tool\nfrom models.slow import Slow\n\n\nclass Tooled(Slow):\n    answer = little_tool.ANSWER\n"


def submit(project: Project, monkeypatch: pytest.MonkeyPatch, *lines: str) -> str:
    """As `backend.requirements` would have it, on a backend that has no such key: what follows does not know the backend."""
    (project.folder / "extra.txt").write_text("\n".join(["--no-index", f"--find-links {project.folder}", *lines, ""]))
    monkeypatch.setattr(submitting, "read_packages", lambda config, folder: read_requirements("extra.txt", folder))
    monkeypatch.setenv("LAUNCHER_RAY_DIR", str(project.ray_folder))
    config = compose([*project.job("trainer.steps=5", "model._target_=models.tooled.Tooled", "workers=2")], folder=project.folder)
    return jobs.submit(config, folder=project.folder).name


@pytest.fixture
def tooled(project: Project) -> Project:
    """Its model imports a package that this machine does not have."""
    (project.folder / "models" / "tooled.py").write_text(TOOLED)
    wheel(project.folder, "little-tool", "1.0")
    return project


def test_a_job_imports_the_packages_that_it_names(tooled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tooled.wait_for_end(submit(tooled, monkeypatch, "little-tool"))
    assert status["state"] == "SUCCEEDED", status["reason"]


def test_packages_that_are_not_to_be_had_fail_the_job_in_words_of_pip(tooled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tooled.wait_for_end(submit(tooled, monkeypatch, "little-tool==7"))
    assert (status["state"], status["exit_code"]) == ("FAILED", 1)
    assert "No matching distribution found for little-tool==7" in status["reason"]
    assert "backend.requirements" in status["reason"]
