"""Which transitions the schedules went through: counted by what was so before, and what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.group import Group
from launcher.runtime.protocol.participant import Participant

EXPECTED = {
    "controller assembling committed": "Applied Formed Gone Left Loaded Prepared Ready",
    "controller assembling preparing": "Applied Expired Gone Loaded Prepared Ready Refused",
    "controller assembling": "Applied ChangeWanted Corrupt Gone Left Loaded Prepared Ready Started StopWanted",
    "controller forming committed": "Applied Ended Formed Gone Left Prepared Ready SaveDecided SaveStarted",
    "controller forming preparing": "Applied Expired Formed Gone Left Prepared Ready Refused SaveDecided",
    "controller leaving preparing": "Applied Ended Formed Gone Left Prepared Ready Refused SaveDecided",
    "controller leaving": "Applied Ended Formed Gone Left Prepared Ready Refused SaveDecided StopWanted",
    "controller training committed": "Applied Ended Formed Gone Left Prepared Ready SaveDecided SaveStarted StopWanted",
    "controller training preparing": ("Applied Ended Expired Formed Gone Left Prepared Ready Refused SaveDecided SaveStarted StopWanted"),
    "controller training": (
        "Applied ChangeWanted Ended Formed Gone Left Prepared Ready Refused SaveDecided SaveStarted Started StopWanted Stuck"
    ),
    "controller does": "AbandonSaves AllLost Changed Commit End Evict Leave Load Prepare Release RollBack Stop Withdraw",
    "worker outside": "commit connected leave prepare release withdraw",
    "worker outside preparing": "commit connected could_not_connect leave prepare withdraw",
    "worker outside committed": "commit enter leave prepare release",
    "worker inside": "applies came_out commit connected ended holds leave prepare withdraw",
    "worker inside preparing": "applies came_out commit connected could_not_connect ended leave prepare withdraw",
    "worker inside committed": "applies came_out commit ended leave prepare switched",
    "worker does": "Connect CutOff Discard Finish SayEnded SayFormed SayLeft SayPrepared SayRefused",
}
"""What was so before, and what has to have come then in some schedule: each phase with each kind of event that can matter in it.

While a change is under way the policy wants none and asks for no workers, so that ChangeWanted and Started come between changes alone;
and no save is begun by a group that its members leave.
"""


def missing(counts: Mapping[str, int]) -> list[str]:
    wanted = [f"{group}: {name}" for group, names in EXPECTED.items() for name in names.split()]
    return [name for name in wanted if not counts.get(name)]


class Coverage:
    def __init__(self) -> None:
        self._events: Counter[tuple[str, str, type]] = Counter()
        self._verbs: Counter[tuple[str, str, str]] = Counter()
        self._done: Counter[tuple[str, type]] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """By what was so before, and what came."""
        events = {f"controller {phase}{change}: {kind.__name__}": count for (phase, change, kind), count in self._events.items()}
        verbs = {f"worker {where}{change}: {verb}": count for (where, change, verb), count in self._verbs.items()}
        return {**events, **verbs, **{f"{who} does: {kind.__name__}": count for (who, kind), count in self._done.items()}}

    def event(self, group: Group, event: e.Event) -> None:
        proposal = group.proposal
        change = "" if proposal is None else " preparing" if proposal.committed is None else " committed"
        self._events[group.phase.value, change, type(event)] += 1

    def action(self, action: e.Action) -> None:
        self._done["controller", type(action)] += 1

    def participant(self, verb: str, part: Participant) -> None:
        change = "" if part.pending is None else " preparing" if part.committed is None else " committed"
        self._verbs["inside" if part.inside else "outside", change, verb] += 1

    def says(self, action: object) -> None:
        self._done["worker", type(action)] += 1
