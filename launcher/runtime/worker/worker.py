"""The main thread of a worker: builds the job's Trainer, then goes into one generation after another. Runs in the worker process.

It is the only thread that touches torch's state, and `run` is its whole program. What it does next it is told by membership.py; what it
does, it writes into activity.py.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checkpoint.catalog import CheckpointInfo, read_manifest
from launcher.core.clock import SystemClock, timestamp
from launcher.core.errors import CheckpointCorrupt, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.types import RunId, Step
from launcher.jobspec.code import unpack
from launcher.jobspec.job import JobSpec
from launcher.jobspec.packages import requirements_key
from launcher.record.run_store import RunStore
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.worker.activity import Activity
from launcher.runtime.worker.controller_connection import ORPHAN_LIMIT_S, ControllerConnection
from launcher.runtime.worker.membership import Entered, Finish, Membership
from launcher.runtime.worker.packages import provide
from launcher.runtime.worker.reporter import Reporter, missing_variable, user_traceback
from launcher.runtime.worker.step_history import StepHistory
from launcher.training.comm.transport import CollectiveBroken

if TYPE_CHECKING:
    from launcher.training.trainer import Trainer


class Worker:
    def __init__(
        self,
        spec: JobSpec,
        runs: str,
        code_folder: Path,
        membership: Membership,
        connection: ControllerConnection,
        history: StepHistory,
        activity: Activity,
        reporter: Reporter,
        *,
        gpus: int,
        joins: bool,
    ) -> None:
        """`gpus`: asked for this worker. `joins`: others are at work already and wait for this one's state to arrive."""
        self._spec, self._runs, self._code_folder, self._gpus, self._joins = spec, runs, code_folder, gpus, joins
        self._membership, self._connection, self._history = membership, connection, history
        self._activity, self._reporter = activity, reporter
        self._code = code_folder
        self._trainer: Trainer | None = None
        self.admitted = threading.Event()
        """To be set when this process knows how the run store is opened."""
        self.job: m.Job | None = None
        """None until it is built."""

    @property
    def progress(self) -> int:
        """Grows with the work done; from any thread."""
        return self._trainer.progress if self._trainer is not None else 0

    def run(self, released: Callable[[], None]) -> None:
        """`released` is called when this worker's part is done."""
        from launcher.training.data.reading_processes import ReadingProcessLost
        from launcher.training.state.transfer import StateDamaged

        try:
            trainer = self._build()
            while True:
                match self._membership.next():
                    case Entered() as entered:
                        self._take_part(trainer, entered)
                    case m.Load() as order:
                        self._load(trainer, order)
                    case Finish():
                        self._finish(trainer, released)
        except LauncherError as error:
            self._fail(str(error), error.exit_code, recoverable=False)
        except (StateDamaged, ReadingProcessLost) as error:
            self._fail(str(error), ExitCode.JOB_FAILED, recoverable=True)
        except BaseException as error:  # noqa: BLE001 - whatever a user's code raises is reported with their traceback
            self._fail(self._user_error(error), ExitCode.JOB_FAILED, recoverable=True)

    def _build(self) -> Trainer:
        """Import the user's code and make a Trainer that is ready for a generation."""
        started = time.monotonic()
        from launcher.training.device import choose_device
        from launcher.training.trainer import Trainer

        imported = time.monotonic()
        self.admitted.wait()
        self._run = RunStore(open_store(self._runs), RunId(self._spec.run_id))
        self._provide_packages()
        self._code = self._unpack_code()
        config = self._spec.config
        device = choose_device(config, self._gpus)
        threads = config.threads(os.cpu_count() or 1)
        trainer = Trainer(config, self._run, self._reporter, device=device, threads=threads)
        trainer.build()
        warm = trainer.warm_up()
        if self._joins:
            trainer.prepare_to_receive()
        self._trainer, self.job = trainer, m.Job(device, trainer.total_steps, trainer.data_size)
        self._activity.phase = "ready"
        times = {"import_s": round(imported - started, 3), "build_s": round(time.monotonic() - imported, 3)}
        self._connection.say(m.Ready(self.job, threads, warm.fused, warm.reason, **times))
        return trainer

    def _provide_packages(self) -> None:
        """Before the first import of the user's code."""
        digest = self._spec.code.packages
        if digest is not None:
            provide(self._run.store.get(self._run.key(requirements_key(digest))), digest, self._code_folder.with_name("packages"))

    def _unpack_code(self) -> Path:
        """The user's code, first on the path and as working directory."""
        digest = self._spec.code.digest
        code = unpack(self._run.store.get(self._run.key(f"code/{digest}.zip")), digest, self._code_folder)
        sys.path.insert(0, str(code))
        os.chdir(code)
        return code

    def _load(self, trainer: Trainer, order: m.Load) -> None:
        """Restore a checkpoint, or begin from the weights of another run, which has to be whole."""
        self._activity.phase = "loading"
        result: m.Loaded | m.Corrupt
        if (origin := order.init_from) is not None:
            run = RunStore(open_store(origin.runs), RunId(origin.run_id))
            trainer.initialise(run, read_manifest(run, CheckpointInfo(origin.step, origin.term)))
            result = m.Loaded(Step(trainer.step))
        else:
            assert order.step is not None
            assert order.term is not None
            try:
                trainer.restore(read_manifest(self._run, CheckpointInfo(order.step, order.term)))
                result = m.Loaded(Step(trainer.step))
            except CheckpointCorrupt as error:
                result = m.Corrupt(order.step, str(error))
        self._activity.phase = "ready"
        self._membership.loaded(order, result)

    def _take_part(self, trainer: Trainer, entered: Entered) -> None:
        """One generation, from its state to its outcome."""
        from launcher.training.trainer import RunOutcome

        self._activity.phase = "training"
        committed, collective = entered.committed, entered.collective
        try:
            self._share(trainer, entered)
            hold, again, save = committed.hold, committed.again, committed.save
            outcome = trainer.hold(collective) if hold else trainer.run(collective, again=again, save=save)
        except CollectiveBroken as error:
            self._activity.phase = "waiting"
            self._membership.came_out(str(error))
            return
        self._activity.phase = "waiting"
        if outcome is RunOutcome.SWITCHED:
            self._membership.switched()
            return
        row = self._history.cut(_now())
        if row is not None:
            self._membership.say_record(row)
        self._membership.ended(Outcome(outcome.value))

    def _share(self, trainer: Trainer, entered: Entered) -> None:
        """Give or take the state; from then on this rank holds the generation's."""
        from launcher.training.state.transfer import StateMove

        began, last_step_at = time.monotonic(), self._activity.last_step_at
        move = StateMove(entered.committed.donors, entered.committed.receivers)
        self._history.take(trainer.share(entered.collective, move, self._history.to_json(), holds_own=entered.holds_own))
        self._history.cut(_now())
        now = time.monotonic()
        pause_s = round(now - last_step_at, 4) if last_step_at is not None else None
        self._membership.holds(Step(trainer.step), move_s=round(now - began, 4), pause_s=pause_s)

    def _finish(self, trainer: Trainer, released: Callable[[], None]) -> None:
        """What is being uploaded still counts; then the controller ends this process."""
        trainer.finish()
        self._activity.phase = "released"
        self._connection.say(m.Released())
        released()
        time.sleep(ORPHAN_LIMIT_S)
        os._exit(0)

    def _fail(self, reason: str, code: ExitCode, *, recoverable: bool) -> None:
        self._activity.phase = "failed"
        self._membership.failed(reason, code, recoverable=recoverable)

    def _user_error(self, error: BaseException) -> str:
        member = self._membership
        where = f"rank {member.rank}, after step {member.applied}" if member.generation else "while the job was built"
        return f"{type(error).__name__} in the job's code ({where})\n{user_traceback(error, self._code)}{missing_variable(error)}"


def _now() -> str:
    return timestamp(SystemClock().now())
