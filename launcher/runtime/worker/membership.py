"""This worker's part in the generations: the Participant behind one lock, and the main thread's orders. Runs in the worker, on all threads.

A message, a group that was formed in the background, and the main thread's own progress each go to the Participant with the lock held, and
what it wants is done before the lock is released. The main thread waits here until there is something to do.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core import log
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Outcome, WorkerState
from launcher.runtime.protocol.participant import CommittedAssignment, Participant
from launcher.runtime.worker.controller_connection import ControllerConnection
from launcher.runtime.worker.groups import Groups
from launcher.runtime.worker.message_handler import MessageHandler
from launcher.runtime.worker.step_history import StepHistory

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.training.comm.collective import Collective


@dataclass(frozen=True)
class Entered:
    """A generation that this worker has just gone into; its state is the next thing to share."""

    committed: CommittedAssignment
    collective: Collective
    holds_own: bool
    """This worker has a state of its own."""


@dataclass(frozen=True)
class Finish:
    """This worker is released."""


@dataclass
class _Orders:
    """To the main thread; guarded by the lock."""

    load: m.Load | None = None
    finish: bool = False
    stop: bool = False


class Membership:
    def __init__(
        self, lock: threading.RLock, connection: ControllerConnection, groups: Groups, history: StepHistory, end: Callable[[str], None]
    ) -> None:
        """`end` ends the process, and is told why."""
        self._changed = threading.Condition(lock)
        self._connection, self._groups, self._history = connection, groups, history
        self._orders = _Orders()
        self._me = Participant()
        self._handler = MessageHandler(self._me, _Effects(self, self._orders, connection, groups, history, end))

    # what comes from other threads

    def receive(self, message: m.ToWorker) -> None:
        with self._changed:
            self._handler.receive(message)
            self._changed.notify_all()

    def connected(self, generation: Generation, connect_s: float) -> None:
        with self._changed:
            self._handler.connected(generation, connect_s)
            self._changed.notify_all()

    def could_not_connect(self, generation: Generation, detail: str) -> None:
        with self._changed:
            self._handler.could_not_connect(generation, detail)

    # what the main thread does

    def next(self) -> Entered | m.Load | Finish:
        """Waits for something to do. A generation has been entered when it is returned."""
        with self._changed:
            self._changed.wait_for(lambda: self._me.may_enter or self._orders.load is not None or self._orders.finish)
            if self._orders.finish:
                return Finish()
            if self._orders.load is not None:
                load, self._orders.load = self._orders.load, None
                return load
            committed = self._handler.enter()
            log.bind(generation=committed.generation, rank=self._me.assignment.rank)
            return Entered(committed, self._groups.enter(committed.generation), holds_own=self._me.applied is not None)

    def loaded(self, order: m.Load, result: m.Loaded | m.Corrupt) -> None:
        with self._changed:
            self._handler.loaded(order, result)

    def holds(self, step: Step, *, move_s: float, pause_s: float | None) -> None:
        """The state of the generation is there."""
        with self._changed:
            self._handler.holds(step, move_s=move_s, pause_s=pause_s)

    def applies(self, step: Step) -> None:
        with self._changed:
            self._me.applies(step)

    def switched(self) -> None:
        with self._changed:
            self._handler.carry_out(self._me.switched())

    def ended(self, outcome: Outcome) -> None:
        with self._changed:
            self._handler.carry_out(self._me.ended(outcome))

    def came_out(self, detail: str) -> None:
        """The collective broke, or was cut."""
        with self._changed:
            self._groups.cut()
            self._connection.say(m.Broken(detail))
            self._handler.carry_out(self._me.came_out())

    def failed(self, reason: str, exit_code: ExitCode, *, recoverable: bool) -> None:
        """The main thread ends with an error: the other ranks do not have to wait for this one."""
        with self._changed:
            self._groups.cut()
            self._connection.say(m.Error(reason, exit_code, self._me.applied, self.generation, recoverable))

    # what is asked, on any thread

    @property
    def generation(self) -> Generation:
        """The newest that this worker is or was in; 0: none."""
        return self._me.assignment.generation

    @property
    def rank(self) -> int | None:
        """In this generation."""
        return self._me.assignment.rank

    @property
    def applied(self) -> Step | None:
        """Steps applied in the state that this worker holds; None: it holds none."""
        return self._me.applied

    @property
    def released(self) -> bool:
        return self._me.released

    @property
    def switch_wanted(self) -> bool:
        """A change of the generation is committed."""
        return self._me.switch_wanted

    @property
    def stop_wanted(self) -> bool:
        return self._orders.stop

    def state(self, worker: WorkerId, *, ready: bool) -> WorkerState:
        with self._changed:
            return self._me.state(worker, ready=ready, born=self._connection.born)

    def beat(self, *, ready: bool, phase: str, progress: int, busy_s: float | None, step_s: float | None) -> m.Beat:
        with self._changed:
            me = self._me
            return m.Beat(
                generation=me.assignment.generation,
                applied=me.applied,
                outcome=me.outcome,
                out=me.out,
                formed_at=me.formed_at if me.formed else None,
                ready=ready,
                phase=phase,
                progress=progress,
                waiting=self._groups.waiting,
                busy_s=busy_s,
                step_s=step_s,
            )

    def say_record(self, record: m.Row | m.Evaluated) -> None:
        """All ranks have it, and one says it."""
        if self.rank == 0:
            self._connection.say(record)


class _Effects:
    """What the Participant and the messages want done (message_handler.Effects). Called with the lock held."""

    def __init__(
        self,
        membership: Membership,
        orders: _Orders,
        connection: ControllerConnection,
        groups: Groups,
        history: StepHistory,
        end: Callable[[str], None],
    ) -> None:
        self._membership, self._orders, self._history = membership, orders, history
        self.connect, self.discard, self.cut, self.value = groups.connect, groups.discard, groups.cut, groups.value
        self.say, self.term_began, self.forget_save = connection.say, connection.term_began, connection.forget_save
        self.forget_records = history.forget
        self._end = end

    def load(self, order: m.Load) -> None:
        self._orders.load = order

    def stop(self) -> None:
        self._orders.stop = True

    def finish(self) -> None:
        self._orders.finish = True

    def send_records(self) -> None:
        records: tuple[m.Row | m.Evaluated, ...] = (*self._history.rows, *self._history.evaluations)
        for record in records:
            self._membership.say_record(record)

    def evicted(self) -> None:
        self._end("its controller evicted it")
