"""How a process ended is told by what watches it: real processes, that end in every way."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.runtime.worker.exit_watcher import MARK

pytestmark = pytest.mark.distributed
BEGIN = "import ctypes, os, sys, time\nfrom launcher.runtime.worker import exit_watcher\nexit_watcher.start()\ntime.sleep(0.5)\n"
HANG_S = 20.0


def kernel_tells() -> bool:
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return platform.system() == "Linux" and version is not None and (int(version[1]), int(version[2])) >= (6, 15)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("ctypes.string_at(0)", -11),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.abort()", -6),
        ("os._exit(0)", 0),
        ("os._exit(3)", 3),
        ("sys.exit(4)", 4),
        ("raise ValueError", 1),
    ],
)
def test_the_end_of_a_process_is_told_after_all_that_it_said_itself(tmp_path: Path, ends: str, code: int) -> None:
    errors = tmp_path / "errors"
    with errors.open("wb") as file:
        process = subprocess.run(
            [sys.executable, "-c", f"{BEGIN}os.write(2, b'last words\\n')\n{ends}\n"], stderr=file, timeout=HANG_S, check=False
        )
    assert process.returncode == code
    wanted = f"{MARK}{code}" if kernel_tells() else "last words"
    deadline = time.monotonic() + HANG_S
    while (lines := errors.read_text().splitlines()) and lines[-1] != wanted and kernel_tells():
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)
    assert "last words" in lines


def test_a_watcher_of_nobody_ends(tmp_path: Path) -> None:
    """A process that is not its parent, or is gone, is not its to watch."""
    script = Path(sys.modules["launcher.runtime.worker.exit_watcher"].__file__ or "")
    for pid in (1, 2**22 - 1):
        done = subprocess.run([sys.executable, str(script), str(pid)], capture_output=True, timeout=HANG_S, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert os.getpid() != 1
