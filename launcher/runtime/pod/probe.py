"""What a job would find in its pod: the versions that are installed, and whether the run store can be used. Runs in a pod of `launch doctor`.

The pod has the image, the secret and the restrictions of a job's head. One line of JSON is printed: launcher.backends.probe_report reads it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from launcher.core.errors import LauncherError
from launcher.core.store import open_store
from launcher.core.store_check import check_store
from launcher.jobspec.versions import installed_versions


class StoreReport(msgspec.Struct, frozen=True):
    """Why the run store cannot be used, and what to do; both "" where it can."""

    problem: str
    next: str


class Report(msgspec.Struct, frozen=True):
    versions: dict[str, str]
    """Package -> version, as installed here."""
    store: StoreReport | None
    """None: no store was to be tried."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 also where something is wrong with the store: that is an answer too."""
    parser = argparse.ArgumentParser(prog="launcher.runtime.pod.probe")
    parser.add_argument("runs", nargs="?", help="the run store to try; left out: none")
    parser.add_argument("--report", type=Path, help="a file that gets the line as well")
    given = parser.parse_args(arguments)
    report = Report(installed_versions(), examine_store(given.runs) if given.runs else None)
    line = msgspec.json.encode(report).decode()
    print(line)
    if given.report is not None:
        given.report.write_text(line)
    return 0


def examine_store(runs: str) -> StoreReport:
    """Write into it, read and delete, as a job would."""
    try:
        check_store(open_store(runs, create=True))
    except LauncherError as error:
        return StoreReport(error.what, error.next or error.expected)
    return StoreReport("", "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
