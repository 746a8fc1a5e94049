"""The example notebook, executed in a kernel of its own, whose event loop is running."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "first_run.ipynb"


def test_the_example_notebook_runs(tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, which holds no code: configurations and models are those that come with launcher."""
    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LAUNCHER_RAY_DIR", str(ray_folder))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(NOTEBOOK, work)
    notebook = nbformat.read(work / NOTEBOOK.name, as_version=4)
    client = NotebookClient(notebook, timeout=360, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute(env=dict(os.environ))
    outputs = {cell["id"]: cell.get("outputs", []) for cell in notebook.cells}
    shown = outputs["resume"][-1]["data"]
    assert "SUCCEEDED" in shown["text/html"]
    assert "60 of 60" in shown["text/html"]
    assert any("SUCCEEDED 40" in output.get("text", "") for output in outputs["wait"])
