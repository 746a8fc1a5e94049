"""The verb `doctor`: what could keep a job from running, before there is one. A Hydra application like `plan`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from launcher.cli.hydra_verbs import configurations, read_options
from launcher.core.errors import UsageError

if TYPE_CHECKING:
    from launcher.backends.base import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
_WORDS = {"ok": "ok", "warning": "warning", "failed": "FAILED"}
_NAME = 21
"""Columns of the longest name of a check."""


def doctor(arguments: tuple[str, ...]) -> int:
    """Check that a job with these words could run; touch nothing. The exit code is that of the worst finding."""
    options = read_options(arguments)
    if options.detach:
        raise UsageError("the checks start nothing that could be left alone", where="--detach (command line)", next="leave it out")
    configs = configurations("doctor", options)
    if not configs:
        return 0
    if len(configs) > 1:
        raise UsageError(
            "several configurations cannot be checked at once",
            where="--multirun (command line)",
            given=f"{len(configs)} of them",
            next="give each key one value",
        )
    from launcher.jobs.doctor import examine, worst

    findings = []
    for finding in examine(configs[0]):
        findings.append(finding)
        if options.output == "text":
            _show(finding)
    if options.output == "json":
        print(json.dumps([to_json(finding) for finding in findings], allow_nan=False))
    return int(worst(findings))


def to_json(finding: Finding) -> dict[str, str]:
    """A finding as `launch doctor -o json` prints it."""
    return {"name": finding.name, "result": finding.result.value, "found": finding.found, "fix": finding.fix}


def text(finding: Finding) -> str:
    """One line, and a second with what to do where there is something to do."""
    from click import style

    word, name = finding.result.value, finding.name
    lines = [f"{style(f'{_WORDS[word]:<8}', fg=_COLOURS[word], bold=word != 'ok')} {name:<{_NAME}} {_one_line(finding.found)}"]
    if finding.fix:
        lines.append(f"{'':<9}{'':<{_NAME}} {style('fix:', dim=True)} {_one_line(finding.fix)}")
    return "\n".join(lines)


def _one_line(words: str) -> str:
    return " ".join(words.split())


def _show(finding: Finding) -> None:
    from click import echo

    from launcher.cli.screen import colour_wanted

    echo(text(finding), color=colour_wanted(sys.stdout))
