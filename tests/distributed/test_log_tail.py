"""What a process printed is read to its last word, also when it dies in the middle of a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.types import WorkerId
from launcher.runtime.cluster.log_tail import LogTail

pytestmark = pytest.mark.distributed


def test_lines_arrive_whole_and_the_last_words_too(tmp_path: Path) -> None:
    said: list[tuple[str, str, str]] = []
    path = tmp_path / "out"
    with path.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "import os\nprint(':job_id:1'); print('one'); print('zwei ü', end='', flush=True); os._exit(1)"],
            stdout=file,
        )
        tail = LogTail(lambda worker, stream, line: said.append((worker, stream, line)))
        tail.follow(WorkerId("w0"), "stdout", path, from_end=False)
        process.wait(timeout=60)
    tail.finish()
    assert said == [("w0", "stdout", "one"), ("w0", "stdout", "zwei ü")]


def test_a_new_controller_does_not_tell_again_what_was_told(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "out"
    path.write_text("old\n")
    tail = LogTail(lambda worker, stream, line: said.append(line))
    tail.follow(WorkerId("w0"), "stdout", path, from_end=True)
    with path.open("a") as file:
        file.write("new\n")
    tail.finish()
    assert said == ["new"]
