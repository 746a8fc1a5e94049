"""The parts of a worker put together, and what is called from outside: attach, describe, a notice. Runs in the worker.

controller_connection.py carries messages and the heartbeat, whatever the main thread does; membership.py decides what a message means;
groups.py connects to the next generation's ranks; worker.py is the main thread.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core import log
from launcher.core.process import set_variables
from launcher.core.types import Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.participant import Assignment
from launcher.runtime.worker.activity import Activity
from launcher.runtime.worker.controller_connection import Contact, ControllerConnection
from launcher.runtime.worker.groups import Groups
from launcher.runtime.worker.membership import Membership
from launcher.runtime.worker.reporter import Reporter
from launcher.runtime.worker.step_history import StepHistory
from launcher.runtime.worker.termination_notices import TerminationNotice
from launcher.runtime.worker.worker import Worker

if TYPE_CHECKING:
    from launcher.training.comm.collective import Collective

COLLECTIVE_TIMEOUT_S = 1800.0
"""A last resort: who is gone or frozen is noticed by the controller, which orders the others to leave."""


class WorkerProcess:
    def __init__(self, spec: JobSpec, runs: str, worker: WorkerId, code_folder: Path, *, gpus: int, joins: bool) -> None:
        """`gpus`: asked for this worker. `joins`: others are at work already and wait for this one's state to arrive."""
        self._id, self._spec = worker, spec
        self._activity = Activity()
        trainer, checkpoint = spec.config.trainer, spec.config.checkpoint
        history = StepHistory(trainer.log_every_steps, trainer.global_batch_size, checkpoint.every_steps)
        lock = threading.RLock()
        self._connection = ControllerConnection(
            worker,
            lock,
            received=lambda message: self._membership.receive(message),
            beat=self._beat,
            progress=lambda: self._worker.progress,
            end=end_process,
        )
        self._groups = Groups(
            self._make_collective,
            self._connection.say,
            connected=lambda generation, connect_s: self._membership.connected(generation, connect_s),
            could_not_connect=lambda generation, detail: self._membership.could_not_connect(generation, detail),
        )
        self._membership = Membership(lock, self._connection, self._groups, history, end_process)
        reporter = Reporter(
            self._membership,
            self._connection,
            self._groups,
            history,
            self._activity,
            self._beat,
            checkpoint_every_steps=checkpoint.every_steps,
        )
        self._worker = Worker(
            spec, runs, code_folder, self._membership, self._connection, history, self._activity, reporter, gpus=gpus, joins=joins
        )

    def start(self, released: Callable[[], None]) -> None:
        """Begin to build, and to serve generations; `released` is called when this worker's part is done."""
        threading.Thread(target=self._worker.run, args=(released,), name="training", daemon=True).start()
        self._connection.watch()

    # all return at once

    def attach(self, term: Term, contact: Contact, variables: Mapping[str, str]) -> m.WorkerDescription | None:
        """Report to the controller of this term from now on; None: this worker reports to one of as high a term, or a higher one.

        `variables`: those of the environment that no record may have, such as the keys of the run store. They come by call, because
        what is given to Ray as an actor's environment is shown in its dashboard.
        """

        def answer() -> m.WorkerDescription:
            self._groups.repeat()
            set_variables(variables)
            self._worker.admitted.set()
            return self.describe()

        return self._connection.attach(term, contact, answer)

    def describe(self) -> m.WorkerDescription:
        return m.WorkerDescription(
            state=self._membership.state(self._id, ready=self._activity.ready),
            phase=self._activity.phase,
            released=self._membership.released,
            spec=self._spec.number,
            pid=os.getpid(),
            node=socket.gethostname(),
            job=self._worker.job,
            undecided=self._connection.undecided,
            stdout=_path_of(1),
            stderr=_path_of(2),
        )

    def noticed(self, notice: TerminationNotice) -> None:
        """This process, or its machine, will go away."""
        self._connection.say(m.Draining(notice.source, notice.deadline_s, notice.detail))

    def _beat(self) -> m.Beat:
        doing = self._activity
        return self._membership.beat(
            ready=doing.ready, phase=doing.phase, progress=self._worker.progress, busy_s=doing.busy_s, step_s=doing.step_s
        )

    def _make_collective(self, assignment: Assignment) -> Collective:
        from launcher.training.comm.collective import Collective

        assert self._worker.job is not None, "only who is ready is called into a generation"
        assert assignment.rank is not None
        return Collective(
            generation=assignment.generation,
            rank=assignment.rank,
            world_size=assignment.world_size,
            device=self._worker.job.device,
            timeout_s=COLLECTIVE_TIMEOUT_S,
        )


def end_process(why: str) -> None:
    log.error(f"this worker ends: {why}")
    os._exit(1)


def _path_of(descriptor: int) -> str:
    """The file that a descriptor leads to; "" where there is none."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
