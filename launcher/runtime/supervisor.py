"""The supervisor: the tiny first process of a job. It keeps a controller alive until one has written the final state.

It imports nothing heavy, so that it is there at once and stays small.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.core.process import ProcessRef

FENCED = 10
"""Exit code of a controller that found a higher term: somebody else is in office."""
QUICK_S = 10.0
QUICK_LIMIT = 3
"""So many controllers in a row that lived for less than QUICK_S: a defect, not an accident."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="launcher.runtime.supervisor")
    parser.add_argument("--runs", required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--controller-file", type=Path, help="where to say which process the controller is")
    given, of_controller = parser.parse_known_args(arguments)
    command = [sys.executable, "-m", "launcher.runtime.controller", given.runs, given.run_id, given.state, *of_controller]
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
        print(f"the controller ended with {code}; {'another one follows' if quick < QUICK_LIMIT else 'giving up'}", flush=True)
        time.sleep(0.2)
    return 1


def _tell(path: Path, pid: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(ProcessRef.of(pid).to_json()))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
