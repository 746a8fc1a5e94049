"""The states of a run, in one table, and the status document that readers meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import to_builtins

from launcher.core.exit_codes import ExitCode
from launcher.core.types import JsonObject
from launcher.record.desired import WorkerBounds
from launcher.record.members import LastChange, Member
from launcher.record.parsing import parsed
from launcher.record.variables import Variables


class JobState(StrEnum):
    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RESIZING = "RESIZING"
    STOPPING = "STOPPING"
    LOST = "LOST"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def terminal(self) -> bool:
        return STATES[self].terminal

    @property
    def stored(self) -> bool:
        """False for what readers compute and no controller writes."""
        return self not in (JobState.PENDING, JobState.LOST)


@dataclass(frozen=True)
class StateMeaning:
    meaning: str
    terminal: bool
    next: frozenset[JobState]


_S = JobState
_ENDS = {_S.STOPPED, _S.FAILED, _S.LOST}
STATES: dict[JobState, StateMeaning] = {
    _S.PENDING: StateMeaning("asked for; no controller yet", False, frozenset({_S.STARTING, _S.FAILED, _S.STOPPED})),
    _S.STARTING: StateMeaning(
        "a controller has begun its term; workers start and load their state", False, frozenset({_S.RUNNING, _S.STOPPING} | _ENDS)
    ),
    _S.RUNNING: StateMeaning("training", False, frozenset({_S.RESIZING, _S.STOPPING, _S.STARTING, _S.SUCCEEDED} | _ENDS)),
    _S.RESIZING: StateMeaning(
        "a new generation of workers is being formed", False, frozenset({_S.RUNNING, _S.STOPPING, _S.STARTING} | _ENDS)
    ),
    _S.STOPPING: StateMeaning("asked to stop; saving a checkpoint", False, frozenset({_S.STARTING, _S.SUCCEEDED} | _ENDS)),
    _S.LOST: StateMeaning(
        "its controller is gone; another may take over, else it is closed as FAILED", False, frozenset({_S.STARTING, _S.FAILED, _S.STOPPED})
    ),
    _S.SUCCEEDED: StateMeaning("all steps done, last checkpoint committed", True, frozenset({_S.STARTING})),
    _S.FAILED: StateMeaning("ended with an error; `launch resume` goes on at the newest whole checkpoint", True, frozenset({_S.STARTING})),
    _S.STOPPED: StateMeaning("stopped by a person; `launch resume` goes on", True, frozenset({_S.STARTING})),
}
"""A terminal state leaves only by `launch resume`, in a new term."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRef:
    step: int
    uri: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What `launch status -o json` prints; a controller writes it, readers compute PENDING and LOST."""

    run_id: str
    name: str
    state: JobState
    reason: str = ""
    """Why it is in this state, for a person; "" when there is nothing to say."""
    step: int = 0
    """Committed steps."""
    total_steps: int | None = None
    epoch: float = 0.0
    """Passes over the training data, to three decimals."""
    term: int = 0
    generation: int = 0
    world_size: int = 0
    workers: WorkerBounds
    members: tuple[Member, ...] = ()
    """The workers of the generation, by rank."""
    changes: int = 0
    """How often the group of workers has changed in this run."""
    last_change: LastChange | None = None
    """The newest change of the group."""
    waiting_for: str = ""
    """The capacity that is missing for the wanted size, in words; "" when none is."""
    draining: tuple[str, ...] = ()
    """Ids of workers that leave with the next change."""
    stragglers: tuple[str, ...] = ()
    """Ids of workers that are much slower than the others."""
    steps_lost: int = 0
    samples_repeated: int = 0
    train_loss: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Of the newest evaluation on the held-out split. Null: not finite."""
    samples_per_s: float | None = None
    goodput: float | None = None
    """Time in committed steps / time since submit, between 0 and 1."""
    checkpoint: CheckpointRef | None = None
    """The newest committed checkpoint."""
    device: str = ""
    environment: Variables = field(default_factory=dict)
    """The environment variables of the job."""
    dashboard: str = ""
    """Address of the Ray dashboard, while it lives."""
    tracking: tuple[str, ...] = ()
    """What the tracker has said of itself in this term, newest last: where the metrics are, and what kept them from there."""
    submitted_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None
    updated_at: str = ""
    sequence: int = 0
    """Grows with every write of this term's controller: liveness is whether it changes."""
    exit_code: int | None = None

    def to_json(self) -> JsonObject:
        """As the store has it and `launch status -o json` prints it."""
        document: JsonObject = to_builtins(self)
        change = document["last_change"]
        if isinstance(change, dict):
            document["last_change"] = dict(sorted(change.items()))
        return document

    @classmethod
    def from_json(cls, document: object, *, where: str = "a run's status") -> RunStatus:
        """Keys that are not known are passed over. Raises StoreDamaged that names `where` and the key."""
        return parsed(document, cls, where=where)


def exit_code_of(state: JobState) -> ExitCode:
    """The exit code of an ended run where the status carries none of its own (an infrastructure failure carries 4)."""
    return {JobState.SUCCEEDED: ExitCode.SUCCEEDED, JobState.STOPPED: ExitCode.STOPPED}.get(state, ExitCode.JOB_FAILED)
