"""What holds for every level: where CI runs, a skipped test is a failure, because a level that did not run proves nothing."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A busy machine is no defect: hangs are what pytest's own limit is for.
settings.register_profile("launcher", deadline=None)
settings.load_profile("launcher")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("tests were skipped where CI is set: what they need has to be installed", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
