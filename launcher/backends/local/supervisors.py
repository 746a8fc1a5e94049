"""Which supervisor works on which run: this machine's own records, one JSON file for each run under jobs/ of the local Ray's folder.

The backend writes them; the keeper of the local Ray reads them, so that Ray stays while a supervisor lives. Beside each record lie the
supervisor's output (.log) and the process of the controller that it keeps (.controller).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.local.state_files import read_state, write_state
from launcher.core.process import ProcessRef
from launcher.record.run_store import RunStore


@dataclass(frozen=True)
class LocalJob:
    """A run, and the process that works on it or is about to start what does."""

    run_id: str
    runs: str
    """Where the run is recorded."""
    supervisor: ProcessRef


@dataclass(frozen=True)
class JobFiles:
    """What this machine has of one run: the record, and what lies beside it."""

    record: Path

    @property
    def log(self) -> Path:
        return self.record.with_suffix(".log")

    @property
    def controller(self) -> Path:
        """Where the supervisor writes the process of the controller that it keeps."""
        return self.record.with_suffix(".controller")

    def write(self, job: LocalJob) -> None:
        write_state(self.record, job)

    def processes(self) -> list[ProcessRef]:
        """The supervisor, and its controller once there is one; [] where no process of this machine was started for the run.

        Raises BackendUnavailable for files of another version of launcher.
        """
        job = read_state(self.record, LocalJob)
        if job is None:
            return []
        controller = read_state(self.controller, ProcessRef)
        return [job.supervisor] if controller is None else [job.supervisor, controller]


def files_of(state: Path, run: RunStore) -> JobFiles:
    """`state`: the local Ray's folder. Runs of the same id in two stores have two records."""
    digest = hashlib.sha256(f"{run.store.uri}\0{run.run_id}".encode()).hexdigest()[:16]
    return JobFiles(state / "jobs" / f"{digest}.json")


def living_processes(state: Path) -> Iterator[ProcessRef]:
    """Every supervisor and controller that runs on this machine now."""
    for record in (state / "jobs").glob("*.json"):
        for process in JobFiles(record).processes():
            if process.alive():
                yield process
