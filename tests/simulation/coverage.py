"""Which transitions the schedules went through: counted by what was so before, and what came."""

from __future__ import annotations

from collections import Counter

from launcher.runtime import membership as m
from launcher.runtime.participant import Participant


class Coverage:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def event(self, membership: m.Membership, event: m.Event) -> None:
        proposal = membership.proposal
        change = "" if proposal is None else " preparing" if proposal.committed is None else " committed"
        self.counts[f"controller {membership.phase.value}{change}: {type(event).__name__}"] += 1

    def action(self, action: m.Action) -> None:
        self.counts[f"controller does {type(action).__name__}"] += 1

    def participant(self, verb: str, part: Participant) -> None:
        where = "inside" if part.inside else "outside"
        change = "" if part.pending is None else " preparing" if part.going is None else " committed"
        self.counts[f"worker {where}{change}: {verb}"] += 1

    def says(self, action: object) -> None:
        self.counts[f"worker does {type(action).__name__}"] += 1
