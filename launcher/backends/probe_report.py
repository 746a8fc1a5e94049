"""What launcher.runtime.pod.probe said, wherever it ran: one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProbeReport:
    versions: dict[str, str]
    problem: str | None
    """Of the run store, "" where there is none; None: it was not tried."""
    next: str


def parse_report(line: str) -> ProbeReport:
    """Raises ValueError for a line that is no report."""
    document: Any = json.loads(line)
    try:
        versions, store = dict(document["versions"]), document["store"]
        if store is None:
            return ProbeReport(versions, None, "")
        return ProbeReport(versions, str(store["problem"]), str(store["next"]))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError("no report of the probe") from error


def versions_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
