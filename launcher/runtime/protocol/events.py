"""What the generation protocol hears and what it wants done: its vocabulary, on both sides. Pure.

An event says what happened; an action says what has to be done about it. The coordinator (coordinator.py) turns the one into the other on
the controller's side; executor.py in the controller carries actions out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.status import JobState

NONE = Generation(0)
"""Before the first generation."""


class Outcome(Enum):
    """Why a worker came out of its generation without being told to leave it."""

    FINISHED = "finished"
    STOPPED = "stopped"
    HELD = "held"
    """It saved, and waits for a generation that is large enough."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a living worker tells a new controller of itself."""

    worker: WorkerId
    ready: bool
    generation: Generation
    """The newest that it was in; 0: none."""
    rank: int
    world_size: int
    applied: Step | None
    inside: bool
    """It did not leave that generation, and its collective did not break."""
    outcome: Outcome | None
    pending: Generation | None
    """Of a change that it was told to prepare."""
    knows_commit: bool
    """It was told that this change is committed."""
    seen: Generation
    """The newest that it was told of."""
    born: Term
    """The term that called it first."""


@dataclass(frozen=True, slots=True)
class Formation:
    """A generation: its workers in the order of their ranks."""

    generation: Generation
    ranks: tuple[WorkerId, ...]


# events


@dataclass(frozen=True, slots=True)
class Started:
    """A worker was asked for; it is not warm yet."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Ready:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Loaded:
    worker: WorkerId
    step: Step


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A worker found the checkpoint of the term's base not whole."""

    worker: WorkerId
    detail: str


@dataclass(frozen=True, slots=True)
class ChangeWanted:
    """A policy, or a person, wants these in and those out. Ignored while another change is under way."""

    join: tuple[WorkerId, ...] = ()
    leave: tuple[WorkerId, ...] = ()
    cause: str = "resize"
    reason: str = ""
    hold: bool = False
    """All members save and wait, whoever joins or leaves."""


@dataclass(frozen=True, slots=True)
class Prepared:
    worker: WorkerId
    generation: Generation


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker could not connect to the others of a generation."""

    worker: WorkerId
    generation: Generation
    detail: str


@dataclass(frozen=True, slots=True)
class Formed:
    """`step` is that of the state with which it was formed, however far the worker has come since."""

    worker: WorkerId
    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is out of every generation up to this one; unasked where its collective broke."""

    worker: WorkerId
    generation: Generation
    applied: Step | None


@dataclass(frozen=True, slots=True)
class Applied:
    worker: WorkerId
    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class Ended:
    worker: WorkerId
    generation: Generation
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is dead, or was evicted: it is never heard again."""

    worker: WorkerId
    reason: str
    cause: str = "lost"


@dataclass(frozen=True, slots=True)
class Stuck:
    """All members wait in one collective and nothing moves: let them out and see who answers."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A generation was not acknowledged by all in time."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A person wants the run to stop: after a step, with a checkpoint."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot go on; whoever is in a collective is let out, and the run ends."""

    reason: str
    exit_code: ExitCode


@dataclass(frozen=True, slots=True)
class SaveStarted:
    """The first part of a checkpoint came; all of them are of one generation."""

    step: Step
    generation: Generation = NONE


@dataclass(frozen=True, slots=True)
class SaveDecided:
    """A checkpoint is committed, or abandoned with a reason."""

    step: Step
    failure: str = ""
    generation: Generation = NONE


Event = (
    Started
    | Ready
    | Loaded
    | Corrupt
    | ChangeWanted
    | Prepared
    | Refused
    | Formed
    | Left
    | Applied
    | Ended
    | Gone
    | Stuck
    | Expired
    | StopWanted
    | Failed
    | SaveStarted
    | SaveDecided
)


# actions


@dataclass(frozen=True, slots=True)
class Load:
    """Restore the checkpoint of the term's base (or the weights to begin from)."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Connect to the others of a generation; those in `leaving` only acknowledge."""

    formation: Formation
    leaving: tuple[WorkerId, ...]
    to: tuple[WorkerId, ...]
    leave: bool = False
    """Leave every generation before it first, at once, and say so."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Irrevocable: go over to the generation as soon as every member of the present one knows it."""

    formation: Formation
    leaving: tuple[WorkerId, ...]
    donors: tuple[int, ...]
    """Ranks that send the state. Who is neither donor nor receiver has it, and keeps it."""
    receivers: tuple[int, ...]
    step: Step | None
    """Of the state; None: that of the boundary at which the members go over."""
    again: bool
    """The generation before ended in the middle: what belonged to its last step may have to be done again."""
    hold: bool
    """Share the state, save it, and wait for the next generation."""
    save: bool
    """Save a checkpoint at once: one was abandoned."""
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    generation: Generation
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave every generation up to this one, at once, and say so."""

    generation: Generation
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """End, once nothing is left to upload."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop after a step."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """End this worker; `Gone` follows."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class AbandonSaves:
    """A member of the generation that was saving is gone: checkpoints that miss a part will never be whole."""

    up_to: Generation
    """Of this generation, or an earlier one."""


@dataclass(frozen=True, slots=True)
class Changed:
    """For the record: a generation was formed by all of its members."""

    formation: Formation
    before: tuple[WorkerId, ...]
    cause: str
    reason: str
    step: Step
    hold: bool


@dataclass(frozen=True, slots=True)
class RollBack:
    """Take a new term on an older checkpoint than this one."""

    corrupt: Step
    detail: str


@dataclass(frozen=True, slots=True)
class AllLost:
    """Nobody holds the state any more: a new term, on the newest whole checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Write the final state and let all workers go."""

    state: JobState
    reason: str
    exit_code: ExitCode


Action = Load | Prepare | Commit | Withdraw | Leave | Release | Stop | Evict | AbandonSaves | Changed | RollBack | AllLost | End
