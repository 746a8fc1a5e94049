"""What a pod of a job would find: versions of what is installed, and whether it reaches the run store. One JSON line.

`launch doctor` starts it in a pod of its own, with the image, the secret and the restrictions of a job's head.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.core.errors import LauncherError
from launcher.core.store import open_store
from launcher.core.store_check import check_store
from launcher.jobspec.versions import installed_versions


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 also where something is wrong with the store: that is an answer too."""
    parser = argparse.ArgumentParser(prog="launcher.runtime.pod.probe")
    parser.add_argument("runs", nargs="?", help="the run store to try; left out: none")
    parser.add_argument("--report", type=Path, help="a file that gets the line as well")
    given = parser.parse_args(arguments)
    line = json.dumps({"versions": installed_versions(), "store": examine_store(given.runs) if given.runs else None})
    print(line)
    if given.report is not None:
        given.report.write_text(line)
    return 0


def examine_store(runs: str) -> dict[str, str]:
    """Why it cannot be used, and what to do; both "" where it can."""
    try:
        check_store(open_store(runs, create=True))
    except LauncherError as error:
        return {"problem": error.what, "next": error.next or error.expected}
    return {"problem": "", "next": ""}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
