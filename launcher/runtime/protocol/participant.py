"""The generation protocol, a worker's side: orders and the main thread's progress in, actions out. Pure: it neither acts, waits nor reads a clock.

docs/protocol.md has the protocol; coordinator.py is the controller's side. Orders may come late, twice or not at all: whatever
is older than what was seen already is dropped, and an order that was carried out is answered again.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol.events import NONE, Outcome, WorkerState


@dataclass(frozen=True, slots=True)
class Assignment:
    """This worker's place in a generation that is prepared; `rank` None: it leaves with this change."""

    generation: Generation
    rank: int | None
    world_size: int


@dataclass(frozen=True, slots=True)
class CommittedAssignment:
    """A committed decision: what to do when the generation is entered."""

    generation: Generation
    donors: tuple[int, ...]
    receivers: tuple[int, ...]
    step: Step | None
    again: bool
    """The generation before ended in the middle."""
    hold: bool
    save: bool


# actions


@dataclass(frozen=True, slots=True)
class Connect:
    """Form the process group of this assignment in the background; answer `connected` or `could_not_connect`."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the process group that is being formed, or was formed and not entered."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class CutOff:
    """Make the main thread leave its collective: it then answers `came_out`."""


@dataclass(frozen=True, slots=True)
class SayPrepared:
    generation: Generation


@dataclass(frozen=True, slots=True)
class SayRefused:
    generation: Generation
    detail: str


@dataclass(frozen=True, slots=True)
class SayFormed:
    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class SayLeft:
    generation: Generation
    applied: Step | None


@dataclass(frozen=True, slots=True)
class SayEnded:
    generation: Generation
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Finish:
    """This worker is released: end, once nothing is left to upload."""


Action = Connect | Discard | CutOff | SayPrepared | SayRefused | SayFormed | SayLeft | SayEnded | Finish


class Participant:
    """One worker in the protocol. The caller serialises all calls and carries out what comes back, in order."""

    def __init__(self) -> None:
        self.assignment = Assignment(NONE, None, 0)
        """The generation that it is or was last in."""
        self.applied: Step | None = None
        """Steps applied in the state that it holds; None: none, or one that was received in part."""
        self.inside = False
        """The main thread is in the generation: its collective may be used."""
        self.formed = False
        """It holds the generation's state."""
        self.formed_at = Step(0)
        """Steps applied in the state with which the generation was formed."""
        self.outcome: Outcome | None = None
        self.pending: Assignment | None = None
        """A change that it was told to prepare."""
        self.committed: CommittedAssignment | None = None
        """The same change, committed."""
        self.released = False
        self._connected = False
        self._seen = NONE
        """Whatever concerns a generation up to this one, and is not what is pending, is late."""
        self._told_to_leave = NONE

    # what the main thread asks

    @property
    def switch_wanted(self) -> bool:
        """To be said with the next step: this worker knows that a change is committed."""
        return self._knows_commit()

    def _knows_commit(self) -> bool:
        return self.committed is not None

    @property
    def may_enter(self) -> bool:
        """A committed generation waits for this worker, whose main thread is free."""
        if self.committed is None or self.pending is None or self.inside:
            return False
        return self._connected and self.pending.rank is not None

    # orders

    def prepare(self, assignment: Assignment, *, leave: bool = False) -> list[Action]:
        """`leave`: out of everything before it, without waiting for that to be done."""
        if self.released:
            return []
        if self.pending is not None and assignment.generation == self.pending.generation:
            left: list[Action] = [SayLeft(self._told_to_leave, self.applied)] if leave and not self.inside else []
            return [*left, *([SayPrepared(assignment.generation)] if self._connected else [])]
        if assignment.generation <= self._seen:
            return []
        dropped = self.leave(Generation(assignment.generation - 1)) if leave else self._drop()
        self.pending, self._seen = assignment, assignment.generation
        if assignment.rank is None:
            self._connected = True
            return [*dropped, SayPrepared(assignment.generation)]
        return [*dropped, Connect(assignment)]

    def commit(self, committed: CommittedAssignment) -> list[Action]:
        if self.pending is not None and committed.generation == self.pending.generation:
            first, self.committed = self.committed is None, committed
            return self._leave_if_idle() if first else []
        if committed.generation == self.assignment.generation:
            return self._again()
        return []

    def withdraw(self, generation: Generation) -> list[Action]:
        if self.pending is None or self.pending.generation != generation or self.committed is not None:
            return []
        return self._drop()

    def leave(self, generation: Generation) -> list[Action]:
        """Out of everything up to this generation."""
        if generation < self._seen:
            return []
        self._seen = self._told_to_leave = generation
        dropped = self._drop()
        if self.inside:
            return [*dropped, CutOff()]
        self.outcome, self.formed = None, False
        return [*dropped, SayLeft(generation, self.applied)]

    def release(self) -> list[Action]:
        self.released = True
        return [] if self.inside else [Finish()]

    # what the background found

    def connected(self, generation: Generation) -> list[Action]:
        if self.pending is None or self.pending.generation != generation:
            return [Discard(generation)]
        self._connected = True
        return [SayPrepared(generation)]

    def could_not_connect(self, generation: Generation, detail: str) -> list[Action]:
        if self.pending is None or self.pending.generation != generation:
            return []
        self.pending, self.committed, self._connected = None, None, False
        return [SayRefused(generation, detail)]

    # what the main thread does

    def enter(self) -> CommittedAssignment:
        """The main thread goes into the generation that waits (`may_enter`)."""
        assert self.pending is not None
        assert self.committed is not None
        committed = self.committed
        self.assignment, self.pending, self.committed, self._connected = self.pending, None, None, False
        self.inside, self.formed, self.outcome = True, False, None
        rank = self.assignment.rank
        if rank in committed.donors and self.applied is None and committed.step == 0:
            self.applied = Step(0)  # a fresh start: what it built is the state of all
        return committed

    def holds(self, step: Step) -> list[Action]:
        """The state of the generation it is in has arrived, or it had it."""
        self.applied, self.formed, self.formed_at = step, True, step
        return [SayFormed(self.assignment.generation, step)]

    def applies(self, step: Step) -> None:
        self.applied = step

    def switched(self) -> list[Action]:
        """All members know of the commit: the step just applied was the last one of this generation."""
        self.inside = False
        return [*self._leave_if_idle(), *self._left_meanwhile()]

    def ended(self, outcome: Outcome) -> list[Action]:
        """The main thread came to the end of what the generation has to do. It may be called into the next one."""
        self.inside, self.outcome = False, outcome
        return [SayEnded(self.assignment.generation, outcome), *self._left_meanwhile()]

    def came_out(self) -> list[Action]:
        """The collective was cut off, or broke. Where it broke, a change that was under way comes to nothing: the controller begins it anew."""
        self.inside = self.formed = False
        dropped = self._drop() if self._told_to_leave < self.assignment.generation else []
        return [
            *dropped,
            SayLeft(max(self._told_to_leave, self.assignment.generation), self.applied),
            *([Finish()] if self.released else []),
        ]

    # for the controller: in every heartbeat, and for one that takes over

    @property
    def out(self) -> bool:
        """It came out of its generation without having done what that had to do."""
        return self.assignment.generation > NONE and not self.inside and self.outcome is None and self.pending is None

    def state(self, worker: WorkerId, *, ready: bool, born: Term) -> WorkerState:
        """`born`: the term that called it first."""
        return WorkerState(
            worker=worker,
            ready=ready,
            generation=self.assignment.generation,
            rank=self.assignment.rank if self.assignment.rank is not None else -1,
            world_size=self.assignment.world_size,
            applied=self.applied,
            inside=self.assignment.generation > NONE and self.formed and (self.inside or self.outcome is not None),
            outcome=self.outcome,
            pending=self.pending.generation if self.pending is not None else None,
            knows_commit=self.committed is not None,
            seen=self._seen,
            born=born,
        )

    def _again(self) -> list[Action]:
        answers: list[Action] = []
        if self.formed:
            answers.append(SayFormed(self.assignment.generation, self.formed_at))
        if self.outcome is not None:
            answers.append(SayEnded(self.assignment.generation, self.outcome))
        return answers

    def _leave_if_idle(self) -> list[Action]:
        """A worker that leaves with a committed change is out as soon as its main thread is."""
        if self.inside or self.committed is None or self.pending is None or self.pending.rank is not None:
            return []
        old = self.assignment.generation
        self.pending, self.committed, self._connected, self.formed = None, None, False, False
        return [SayLeft(old, self.applied), *([Finish()] if self.released else [])]

    def _left_meanwhile(self) -> list[Action]:
        """An order to leave came while the main thread was on its way out."""
        if self._told_to_leave < self.assignment.generation:
            return []
        self.outcome, self.formed = None, False
        return [SayLeft(self._told_to_leave, self.applied)]

    def _drop(self) -> list[Action]:
        if self.pending is None:
            return []
        generation, had_place = self.pending.generation, self.pending.rank is not None
        self.pending, self.committed, self._connected = None, None, False
        return [Discard(generation)] if had_place else []
