"""How often the controller looks, and how long it waits, in seconds. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    tick_s: float = 0.1
    repeat_s: float = 1.0
    """Orders that were not answered are said again after so long."""
    policy_s: float = 0.25
    """Between two looks of the scaling policy."""
    ledger_s: float = 10.0
    """The ledger is written at least so often."""
    prepare_s: float = 10.0
    """All members have to be connected within so long."""
    attach_s: float = 4.0
    """A worker that does not answer a new controller for so long is ended."""
    settle_s: float = 10.0
    """How long a change may keep new offers waiting until its first step is done."""
    taken_over_s: float = 60.0
    """How long the missing parts of a checkpoint that was begun under an earlier controller are awaited."""
