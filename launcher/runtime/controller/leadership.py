"""Which term this controller leads the run in, and the coordinator of that term. Runs in the controller process.

A controller leads as long as the store has no higher term. A roll-back of training begins a new term, with a new coordinator, under the same
controller.
"""

from __future__ import annotations

from contextlib import suppress

from launcher.core.errors import StoreUnavailable
from launcher.core.types import Term
from launcher.record.desired import Desired
from launcher.record.run_store import RunStore
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.protocol.events import End
from launcher.runtime.protocol.group import Group
from launcher.runtime.records.inheritance import Inheritance


class LeadershipLost(Exception):
    """A higher term was claimed, or this one has another base: this controller must not act any more."""


class Leadership:
    def __init__(self, run: RunStore, term: Term, inherited: Inheritance, desired: Desired) -> None:
        self._run = run
        self.term = term
        self.inherited = inherited
        """What earlier terms left."""
        self.desired = desired
        """The newest desired state that is known."""
        self.coordinator = Coordinator(minimum=desired.workers.min, load=False, generation=inherited.generation)
        self.end: End | None = None
        """Once it is decided how the run ends."""
        self.lost = False

    @property
    def group(self) -> Group:
        return self.coordinator.group

    @property
    def active(self) -> bool:
        """Whether there is anything left to decide."""
        return self.end is None and not self.lost

    def check(self) -> bool:
        """Look whether this controller still leads; where the store does not answer, what is known holds.

        To be asked before anything that others would feel at once: a controller that stood still may have been replaced meanwhile.
        """
        with suppress(StoreUnavailable):
            self.lost = self.lost or self._run.highest_term() > self.term
        return not self.lost

    def begin_term(self, term: Term, inherited: Inheritance) -> None:
        self.term, self.inherited = term, inherited
