"""Keeps a controller alive until one has written the final state. Runs in the first process of a job, `python -m launcher.runtime.supervisor`.

It imports nothing heavy, so that it is there at once and stays small. What it does not know of its arguments goes to the controller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.core import log
from launcher.core.process import ProcessRef

FENCED = 10
"""Exit code of a controller that found a higher term: another one leads the run."""
QUICK_S = 10.0
QUICK_LIMIT = 3
"""After so many controllers in a row that lived for less than QUICK_S none is started any more: the next would fare no better."""
PAUSE_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """The exit code of the last controller where that was its own decision, else 1."""
    parser = argparse.ArgumentParser(prog="launcher.runtime.supervisor")
    parser.add_argument("--runs", required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--controller-file", type=Path, help="where to say which process the controller is")
    given, of_controller = parser.parse_known_args(arguments)
    command = [sys.executable, "-m", "launcher.runtime.controller", given.runs, given.run_id, given.state, *of_controller]
    log.setup("supervisor", run=given.run_id)
    quick = 0
    while quick < QUICK_LIMIT:
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if given.controller_file is not None:
            _tell(given.controller_file, process.pid)
        code = process.wait()
        if code in (0, FENCED):
            return code
        quick = quick + 1 if time.monotonic() - began < QUICK_S else 0
        follows = (
            "another one follows" if quick < QUICK_LIMIT else f"none follows after {QUICK_LIMIT} that lived for less than {QUICK_S:g} s"
        )
        log.error(f"the controller ended with {code}; {follows}")
        time.sleep(PAUSE_S)
    return 1


def _tell(path: Path, pid: int) -> None:
    """Write which process `pid` is; the file is never there in part."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(ProcessRef.of(pid).to_json()))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
