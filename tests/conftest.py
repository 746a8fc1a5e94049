"""What holds for every level: its tests lie in its folders, and where CI runs, a skipped test is a failure: a level that did not run proves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no defect: hangs are what pytest's own limit is for.
settings.register_profile("launcher", deadline=None)
settings.load_profile("launcher")

HERE = Path(__file__).parent
LEVELS = {
    "unit": "unit",
    "simulation": "simulation",
    "oracle": "oracle",
    "distributed": "distributed",
    "tracking": "distributed",
    "storage": "storage",
    "ray": "ray",
    "cluster": "cluster",
}
"""The marker of each folder's tests. A level is run by its folders, so that nothing is imported for the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        marked = {mark.name for mark in item.iter_markers()} & set(LEVELS.values())
        if marked != {LEVELS[folder]}:
            marks = ", ".join(sorted(marked)) or "nothing"
            raise pytest.UsageError(f"{item.nodeid} is marked {marks}; tests in tests/{folder} are marked {LEVELS[folder]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("tests were skipped where CI is set: what they need has to be installed", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
