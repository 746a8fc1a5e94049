"""What the probe (launcher.runtime.pod.probe) prints where a job would run: one line of JSON, the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class ProbeReport:
    versions: dict[str, str]
    """Package -> version, as installed there."""
    problem: str | None
    """Why the run store cannot be used from there; "" where it can be, None where it was not tried."""
    next: str
    """What to do about the problem."""


class _Store(msgspec.Struct, frozen=True):
    problem: str
    next: str


class _Line(msgspec.Struct, frozen=True):
    versions: dict[str, str]
    store: _Store | None


def parse_report(line: str) -> ProbeReport:
    """Raises ValueError for a line that is no report."""
    try:
        said = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise ValueError("no report of the probe") from error
    if said.store is None:
        return ProbeReport(said.versions, None, "")
    return ProbeReport(said.versions, said.store.problem, said.store.next)


def versions_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
