"""The failure policy: what an error or a loss means, given what happened before. Pure: history and event in, history and verdict out.

An error may lie in a worker's machine or in the job. The first costs a worker, and the others go on; what comes again without progress lies in
the job and ends it, with the user's traceback. Newcomers that fail disturb nobody: after some in a row no more are offered.
A new controller begins with an empty history, so an error may be tried once more than said here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, WorkerId

LOSSES = 3
"""So many generations may lose workers without a newly committed step."""
FAILED_STARTS = 3
"""After so many failures of newcomers in a row no more are offered."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the group stands without the worker in question."""

    committed: Step
    others: int
    """Other members of the generation; while none trains, workers that are ready."""
    ready: int
    """Warm workers that are no members; 0 while none trains."""
    starting: int
    """Alive and on their way to being ready."""
    minimum: int


@dataclass(frozen=True)
class Error:
    """A worker raised, and says so."""

    worker: WorkerId
    step: Step
    """Steps it had applied."""
    reason: str
    """One line, then the traceback where there is one."""
    exit_code: ExitCode
    user: bool
    """Raised by the job's own code; else a LauncherError."""


@dataclass(frozen=True)
class Loss:
    """A member died, or was evicted because it was silent or hung."""

    worker: WorkerId
    generation: Generation
    reason: str
    fresh: bool = False
    """No step was committed since it joined a group that had trained without it."""


@dataclass(frozen=True)
class StartFailed:
    """A worker raised or died before it was a member of any generation. One that went with its machine is none of these: tell nobody."""

    worker: WorkerId
    cause: Literal["user", "launcher", "death"]
    """Raised by the job's own code while it was built; a LauncherError; ended without a word, e.g. for want of memory."""
    reason: str
    exit_code: ExitCode = ExitCode.JOB_FAILED


@dataclass(frozen=True)
class BecameReady:
    """A worker is ready."""


@dataclass(frozen=True)
class FirstCommit:
    """A generation committed its first step."""

    newcomers: bool
    """Whether members took part with whom no step had been committed before."""


@dataclass(frozen=True)
class DesiredChanged:
    """A person changed the desired size: what was not tried any more is tried again."""


Event = Error | Loss | StartFailed | BecameReady | FirstCommit | DesiredChanged


@dataclass(frozen=True)
class Recover:
    """The worker is evicted, the others go on, another is offered in its place (where more are offered at all: History.no_offers)."""

    reason: str
    """One line, then the traceback where there is one; so in all verdicts."""


@dataclass(frozen=True)
class StopOffering:
    """As Recover, and no more workers are offered."""

    reason: str


@dataclass(frozen=True)
class Fail:
    reason: str
    exit_code: ExitCode


Verdict = Recover | StopOffering | Fail


@dataclass(frozen=True, kw_only=True)
class History:
    committed: Step = field(default=Step(0))
    """The highest step ever committed, so that work done again after a roll-back is no progress."""
    errors: tuple[tuple[WorkerId, Step], ...] = ()
    """Errors of the job's code in training."""
    error_at: Step | None = None
    """What was committed at the newest of them."""
    lossy: frozenset[Generation] = frozenset()
    """Generations that lost workers since the newest committed step: workers lost together, as with a machine, count once."""
    failed_starts: tuple[StartFailed, ...] = ()
    """Since a worker was ready."""
    died_fresh: frozenset[Generation] = frozenset()
    """Generations that lost newcomers before a step was committed with them, since newcomers took part in one that was."""
    no_offers: str = ""
    """Why no more workers are offered; "": they are."""
    offers_with_progress: bool = False
    """They are offered again when a step is committed, else only when a person changes the desired size."""


def judge(history: History, event: Event, standing: Standing) -> tuple[History, Verdict | None]:
    """None: nothing to do."""
    if standing.committed > history.committed:
        history = replace(history, committed=standing.committed, lossy=frozenset())
        if history.offers_with_progress:
            history = replace(history, no_offers="", offers_with_progress=False)
    match event:
        case Error():
            return _error(history, event, standing)
        case Loss():
            return _loss(history, event, standing)
        case StartFailed():
            return _start_failed(history, event, standing)
        case BecameReady():
            return replace(history, failed_starts=()), None
        case FirstCommit(newcomers):
            return (replace(history, died_fresh=frozenset()) if newcomers else history), None
        case DesiredChanged():
            return History(committed=history.committed, errors=history.errors, error_at=history.error_at), None


def _error(history: History, error: Error, standing: Standing) -> tuple[History, Verdict]:
    errors, error_at = history.errors, history.error_at
    now = replace(history, errors=(*errors, (error.worker, error.step)), error_at=history.committed)
    if not error.user or standing.others == 0:
        return now, Fail(error.reason, error.exit_code)
    same = [worker for worker, step in errors if step == error.step]
    if same:
        again = f"it came again at step {error.step} on another worker ({same[-1]}, then {error.worker})"
        return now, Fail(_with_note(error.reason, again), error.exit_code)
    if error_at is not None and history.committed <= error_at:
        worker, step = errors[-1]
        again = f"{worker} had raised at step {step}, and no step was committed since"
        return now, Fail(_with_note(error.reason, again), error.exit_code)
    once_more = f"{error.worker} is given up, and step {error.step} is tried once more on the others"
    return _go_on(now, _with_note(error.reason, once_more), standing, error.exit_code)


def _loss(history: History, loss: Loss, standing: Standing) -> tuple[History, Verdict]:
    now = replace(history, lossy=history.lossy | {loss.generation})
    stop, progress = "", False
    if loss.fresh:
        now = replace(now, died_fresh=now.died_fresh | {loss.generation})
        if len(now.died_fresh) >= FAILED_STARTS:
            stop = f"newcomers were lost {len(now.died_fresh)} times in a row before a step was committed with them"
    if not stop and len(now.lossy) > LOSSES:
        stop, progress = f"workers were lost {len(now.lossy)} times without a step committed in between", True
    return _go_on(now, loss.reason, standing, ExitCode.JOB_FAILED, stop=stop, progress=progress)


def _start_failed(history: History, failure: StartFailed, standing: Standing) -> tuple[History, Verdict]:
    before = history.failed_starts
    now = replace(history, failed_starts=(*before, failure))
    able = standing.others + standing.ready
    if failure.cause == "launcher" and able < standing.minimum:
        return now, Fail(failure.reason, failure.exit_code)
    if failure.cause == "user" and able == 0:
        raised = [one.worker for one in before if one.cause == "user"]
        if raised:
            return now, Fail(_with_note(failure.reason, f"it came on {raised[-1]} and on {failure.worker}"), failure.exit_code)
        if standing.starting == 0:
            return now, Fail(failure.reason, failure.exit_code)
    many = len(now.failed_starts)
    stop = f"{many} workers in a row could not be started" if many >= FAILED_STARTS else ""
    return _go_on(now, failure.reason, standing, failure.exit_code, stop=stop)


def _go_on(
    history: History, reason: str, standing: Standing, code: ExitCode, *, stop: str = "", progress: bool = False
) -> tuple[History, Verdict]:
    """With those who are left; without more offers where there is a reason to stop them; not at all where too few could ever be left."""
    stopped = history.no_offers or stop
    could = standing.others + standing.ready + standing.starting
    if stopped and could < standing.minimum:
        return history, Fail(_with_note(reason, f"{stopped}; {could} of at least {standing.minimum} workers are left"), code)
    if history.no_offers or not stop:
        return history, Recover(reason)
    again = "a step is committed" if progress else "the wish changes (`launch resize`)"
    note = f"{stop}, no more are offered until {again}"
    return replace(history, no_offers=note, offers_with_progress=progress), StopOffering(_with_note(reason, note))


def _with_note(reason: str, note: str) -> str:
    first, newline, rest = reason.partition("\n")
    return f"{first}; {note}{newline}{rest}"
