"""What can go wrong, named by what the reader does next.

LauncherError
├── UsageError                  correct the command
│   ├── ConfigError             correct the configuration (file, key, value are named)
│   ├── RunNotFound             name a run that exists
│   ├── NameTaken               choose another name
│   └── RunStateError           the run is in a state that does not allow this
├── InfrastructureError         mend the machine or wait, then try again
│   ├── BackendUnavailable      Ray, or the cluster, is not there or does not fit
│   ├── CapacityError           not enough GPUs or memory
│   ├── StoreUnavailable        the run store cannot be read or written
│   └── StoreDamaged            an object in the run store is not what was written there: restore it
└── JobFailed                   look into the job: its code, data or state
    ├── UserCodeError           correct the model, data or task code (the traceback is the user's)
    ├── TrainingDiverged        the loss is not a number: change the optimisation, resume from the last good checkpoint
    ├── CheckpointCorrupt       resume from an older checkpoint
    └── CheckpointAbandoned     nothing: it was not committed, and is saved again at the next step
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from launcher.core.exit_codes import ExitCode


class LauncherError(Exception):
    """An error for a person: what happened, where, what was given, what is expected and what to do next.

    The parts are facts; str() writes them one to a line. `where` names file and key where there are such.
    """

    exit_code: ExitCode = ExitCode.JOB_FAILED

    def __init__(self, what: str, *, where: str = "", given: str = "", expected: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.given = given
        self.expected = expected
        self.next = next

    def __str__(self) -> str:
        parts = [("where", self.where), ("given", self.given), ("expected", self.expected), ("next", self.next)]
        return "\n".join([self.what, *(f"  {label + ':':10}{text}" for label, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.given, self.expected, self.next))


def _rebuild(kind: type[LauncherError], what: str, where: str, given: str, expected: str, next: str) -> LauncherError:
    return kind(what, where=where, given=given, expected=expected, next=next)


class UsageError(LauncherError):
    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    pass


class RunNotFound(UsageError):
    pass


class NameTaken(UsageError):
    pass


class RunStateError(UsageError):
    pass


class InfrastructureError(LauncherError):
    exit_code = ExitCode.INFRASTRUCTURE


class BackendUnavailable(InfrastructureError):
    pass


class CapacityError(InfrastructureError):
    pass


class StoreUnavailable(InfrastructureError):
    pass


class StoreDamaged(InfrastructureError):
    pass


class JobFailed(LauncherError):
    exit_code = ExitCode.JOB_FAILED


class UserCodeError(JobFailed):
    pass


class TrainingDiverged(JobFailed):
    pass


class CheckpointCorrupt(JobFailed):
    pass


class CheckpointAbandoned(JobFailed):
    pass


class ForeignTraceback(Exception):
    """The traceback of an exception that was raised in another process, as text: the cause of the exception that came over from there."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence naming the choices nearest to `word`, or all of them when none is near; empty without choices."""
    known = sorted(set(choices))
    if not known:
        return ""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"one of {', '.join(known)}"
