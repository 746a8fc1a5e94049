"""Playing cases of one kind, drawn from a seed; the first that fails is made as small as its failure allows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis
import msgspec

from tests.oracle.cases import Case, cases
from tests.oracle.verdict import play

CASES = 25
"""Of one kind and seed."""
SHRINKING_S = 30.0
"""How long a failing case is made smaller."""


class Enough(BaseException):
    """Ends the search for a smaller case."""


@dataclass
class Found:
    """What became of the cases of one kind and seed."""

    kind: str
    seed: int
    count: int
    """How many were to be played: which cases a seed gives hangs on it."""
    played: Counter[str] = field(default_factory=Counter)
    """Cases by history; those that only made a failing one smaller do not count."""
    largest: dict[str, float] = field(default_factory=dict)
    """By history: the largest difference, as a part of what is allowed."""
    smallest: Case | None = None
    """That fails."""
    failure: str = ""

    def __str__(self) -> str:
        """The failing case and how to play it again."""
        case = "none" if self.smallest is None else as_json(self.smallest)
        replay = f"python -m tests.oracle --kind '{self.kind}' --seed {self.seed} --cases {self.count}"
        alone = f"python -m tests.oracle --case '{case}'"
        return f"{self.kind}, seed {self.seed}: {self.failure}\n  search again: {replay}\n  play it alone: {alone}"


def search(kind: str, seed: int, *, count: int = CASES, shrinking_s: float = SHRINKING_S, telling: Callable[[Case], object]) -> Found:
    """Play `count` cases of a kind from a seed on, or as many as come before the first that fails. `telling`: called before each."""
    found = Found(kind, seed, count)
    failed_at: float | None = None

    def test(case: Case) -> None:
        nonlocal failed_at
        if failed_at is None:
            found.played[case.history] += 1
        elif time.monotonic() - failed_at > shrinking_s:
            raise Enough
        try:
            telling(case)
            largest = play(case)
        except Exception as error:
            failed_at = failed_at or time.monotonic()
            found.smallest, found.failure = case, told(error)
            raise
        found.largest[case.history] = max(found.largest.get(case.history, 0.0), largest)

    phases = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
    settings = hypothesis.settings(
        max_examples=count,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=hypothesis.Verbosity.quiet,
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(cases(kind))(test)))()
    except (Exception, Enough):
        if found.smallest is None:
            raise
    return found


def as_json(case: Case) -> str:
    """A case without the settings that are as always."""
    usual = msgspec.to_builtins(Case())
    unusual = {key: value for key, value in msgspec.to_builtins(case).items() if value != usual[key]}
    return json.dumps(unusual, separators=(",", ":"))


def told(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {str(error)[:600]}"
