"""The shell of docs/backends.md's example does what the page says, in a real shell on this machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.backends.base import Owner
from launcher.config.load import compose
from launcher.core.store import open_store
from launcher.core.types import RunId
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.run_store import RunStore
from tests.support import backends_page

pytestmark = pytest.mark.distributed
SSH = """#!/bin/sh
for command; do :; done
exec sh -c "$command"
"""
PYTHON = """#!/bin/sh
echo "python $*"
sleep 60 &
wait
"""


def test_a_supervisor_is_started_seen_and_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("ssh", SSH), ("there/python", PYTHON)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with backends_page.loaded(tmp_path) as page:
        monkeypatch.setattr(page, "STATE_FOLDER", str(tmp_path / "state"))
        setup = f"backend.setup='PATH={tmp_path}/bin/there:$PATH'"
        config = compose(["backend=ssh", "backend.host=here", setup, "runs=s3://bucket/runs", "gpu=0", "model=mlp"], folder=tmp_path)
        spec = JobSpec(run_id=RunId("mlp-abcdef"), name="mlp", config=config, code=CodeRef(digest="0"), versions={}, submitted_at="")
        run = RunStore(open_store(str(tmp_path / "runs"), create=True), spec.run_id)
        run.store.put(run.key("spec-1.json"), json.dumps(spec.to_json()).encode())
        backend = page.SshBackend()

        assert backend.owner(run) is Owner.UNKNOWN
        assert backend.remove(run) == "", "there is nothing yet"
        backend.launch(spec, run)
        try:
            deadline = time.monotonic() + 20
            while backend.owner(run) is Owner.UNKNOWN or not backend.last_words(run):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert backend.owner(run) is Owner.ALIVE
            assert backend.last_words(run).startswith("python -m launcher.runtime.supervisor --runs ")
        finally:
            assert backend.remove(run) == ""
        assert backend.owner(run) is Owner.GONE
