"""The records of who works on which run on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.backends.local.supervisors import JobFiles, LocalJob, files_of, living_processes
from launcher.core.errors import BackendUnavailable
from launcher.core.process import ProcessRef
from launcher.core.store import open_store
from launcher.core.types import RunId
from launcher.record.run_store import RunStore

pytestmark = pytest.mark.unit
NOBODY = ProcessRef(pid=2**22 + 1, started="1", boot="another boot")


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    (tmp_path / "jobs").mkdir()
    return files_of(tmp_path, RunStore(open_store(str(tmp_path / "runs"), create=True), RunId("r")))


def test_a_run_has_its_supervisor_and_the_controller_that_it_tells_of(files: JobFiles) -> None:
    assert files.processes() == []
    files.write(LocalJob("r", "runs", NOBODY))
    assert files.processes() == [NOBODY]
    me = ProcessRef.of(os.getpid())
    files.controller.write_text(f'{{"pid": {me.pid}, "started": "{me.started}", "boot": "{me.boot}"}}')
    assert files.processes() == [NOBODY, me]


def test_only_processes_that_run_keep_ray_busy(files: JobFiles, tmp_path: Path) -> None:
    assert list(living_processes(tmp_path)) == []
    files.write(LocalJob("r", "runs", NOBODY))
    assert list(living_processes(tmp_path)) == []
    me = ProcessRef.of(os.getpid())
    files.write(LocalJob("r", "runs", me))
    assert list(living_processes(tmp_path)) == [me]


def test_half_a_record_is_none_and_one_of_another_form_is_named(files: JobFiles) -> None:
    files.record.write_text('{"run_id"')
    assert files.processes() == []
    files.record.write_text('{"run_id": "r"}')
    with pytest.raises(BackendUnavailable, match="another version of launcher") as refused:
        files.processes()
    assert refused.value.where == str(files.record)
