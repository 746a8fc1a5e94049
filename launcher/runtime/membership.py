"""The worker group's life as a pure state machine: an event in, the next group and the actions to take out.

ASSEMBLING   workers start, import, build the model and warm up; each reports ready
LOADING      each restores the checkpoint that the term builds on
TRAINING     a generation is formed and runs to its outcome
ENDED        nothing more follows

A generation is one fixed membership: ranks are given when it is formed and hold until it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Rank, Step, WorkerId
from launcher.spec.status import JobState


class Phase(Enum):
    ASSEMBLING = "assembling"
    LOADING = "loading"
    TRAINING = "training"
    ENDED = "ended"


class Outcome(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Member:
    rank: Rank
    applied: Step = field(default=Step(0))
    ready: bool = False
    loaded: bool = False
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    phase: Phase
    generation: Generation
    """The newest one; 0 before the first is formed."""
    members: Mapping[WorkerId, Member]
    checkpoint: Step | None = None
    """What LOADING restores; None: a fresh start, or weights from elsewhere."""
    load: bool = False
    """Whether there is anything to load before training."""
    stopping: bool = False
    saving: frozenset[Step] = field(default_factory=frozenset)
    """Checkpoints of which a part has come and whose commit is not decided."""
    unsaved: str = ""
    """Why the newest checkpoint failed; "" when it did not."""

    @property
    def committed(self) -> Step:
        """Every member holds this step."""
        return min((member.applied for member in self.members.values()), default=Step(0))


# events


@dataclass(frozen=True)
class Ready:
    worker: WorkerId


@dataclass(frozen=True)
class Loaded:
    worker: WorkerId
    step: Step


@dataclass(frozen=True)
class Corrupt:
    """A worker found the checkpoint not whole."""

    worker: WorkerId
    detail: str


@dataclass(frozen=True)
class Applied:
    worker: WorkerId
    step: Step


@dataclass(frozen=True)
class Ended:
    """A worker came out of its generation, having done all there was or having been asked to stop."""

    worker: WorkerId
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A worker reports an error that ends the job."""

    worker: WorkerId
    reason: str
    exit_code: ExitCode


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or silent for too long."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True)
class StopWanted:
    pass


@dataclass(frozen=True)
class SaveStarted:
    step: Step


@dataclass(frozen=True)
class SaveDecided:
    """A checkpoint is committed, or given up with a reason."""

    step: Step
    failure: str = ""


Event = Ready | Loaded | Corrupt | Applied | Ended | Failed | Lost | StopWanted | SaveStarted | SaveDecided


# actions


@dataclass(frozen=True)
class Load:
    """Every member restores the checkpoint of the term's base (or the weights to begin from)."""


@dataclass(frozen=True)
class Form:
    """Every member forms this generation and trains."""

    generation: Generation


@dataclass(frozen=True)
class Stop:
    """Every member is asked to stop after a step."""


@dataclass(frozen=True)
class Leave:
    """Every member leaves its collective at once."""


@dataclass(frozen=True)
class RollBack:
    """Take a new term on an older checkpoint than this one."""

    corrupt: Step
    detail: str


@dataclass(frozen=True)
class End:
    """Write the final state and let all workers go."""

    state: JobState
    reason: str
    exit_code: ExitCode


Action = Load | Form | Stop | Leave | RollBack | End
Decision = tuple[Group, tuple[Action, ...]]


def assemble(workers: list[WorkerId], *, checkpoint: Step | None, load: bool) -> Group:
    members = {worker: Member(rank=Rank(rank)) for rank, worker in enumerate(workers)}
    return Group(phase=Phase.ASSEMBLING, generation=Generation(0), members=members, checkpoint=checkpoint, load=load)


def adopt(ranks: Mapping[WorkerId, Member], generation: Generation) -> Group:
    """The group that a new controller finds at work."""
    return Group(phase=Phase.TRAINING, generation=generation, members=dict(ranks))


def decide(group: Group, event: Event) -> Decision:
    if group.phase is Phase.ENDED:
        return group, ()
    match event:
        case StopWanted():
            return _stop(group)
        case SaveStarted(step):
            return replace(group, saving=group.saving | {step}), ()
        case SaveDecided(step, failure):
            return _finish(replace(group, saving=group.saving - {step}, unsaved=failure))
    if event.worker not in group.members:
        return group, ()
    member = group.members[event.worker]
    match event:
        case Ready():
            return _advance(_with(group, event.worker, replace(member, ready=True)))
        case Loaded(step=step):
            return _advance(_with(group, event.worker, replace(member, loaded=True, applied=step)))
        case Corrupt(detail=detail):
            return group, (RollBack(group.checkpoint or Step(0), detail),)
        case Applied(step=step):
            return _with(group, event.worker, replace(member, applied=max(member.applied, step))), ()
        case Ended(outcome=outcome):
            return _finish(_with(group, event.worker, replace(member, outcome=outcome)))
        case Failed(reason=reason, exit_code=exit_code):
            return _break_off(group, reason, exit_code)
        case Lost(reason=reason):
            return _lost(group, member, reason)


def _with(group: Group, worker: WorkerId, member: Member) -> Group:
    return replace(group, members={**group.members, worker: member})


def _advance(group: Group) -> Decision:
    members = group.members.values()
    if group.phase is Phase.ASSEMBLING and all(member.ready for member in members):
        if group.load:
            return replace(group, phase=Phase.LOADING), (Load(),)
        return _form(group)
    if group.phase is Phase.LOADING and all(member.loaded for member in members):
        return _form(group)
    return group, ()


def _form(group: Group) -> Decision:
    generation = Generation(group.generation + 1)
    return replace(group, phase=Phase.TRAINING, generation=generation), (Form(generation),)


def _stop(group: Group) -> Decision:
    if group.stopping:
        return group, ()
    if group.phase is not Phase.TRAINING:
        return _end(group, JobState.STOPPED, "stopped before training began", ExitCode.STOPPED)
    return replace(group, stopping=True), (Stop(),)


def _lost(group: Group, member: Member, reason: str) -> Decision:
    if member.outcome is not None:
        return group, ()  # it had done its part
    resume = "`launch resume` goes on at the newest checkpoint"
    return _break_off(group, f"{reason}; {resume}", ExitCode.JOB_FAILED)


def _break_off(group: Group, reason: str, exit_code: ExitCode) -> Decision:
    ended, end = _end(group, JobState.FAILED, reason, exit_code)
    return ended, (Leave(), *end)


def _finish(group: Group) -> Decision:
    outcomes = {member.outcome for member in group.members.values()}
    if None in outcomes or group.saving:
        return group, ()
    if group.unsaved:
        return _end(group, JobState.FAILED, f"the last checkpoint could not be saved: {group.unsaved}", ExitCode.INFRASTRUCTURE)
    if outcomes == {Outcome.FINISHED}:
        return _end(group, JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)
    return _end(group, JobState.STOPPED, "stopped on request", ExitCode.STOPPED)


def _end(group: Group, state: JobState, reason: str, exit_code: ExitCode) -> Decision:
    return replace(group, phase=Phase.ENDED), (End(state, reason, exit_code),)
