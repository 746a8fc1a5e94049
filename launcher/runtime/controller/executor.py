"""Carries out what was decided: the one place of the controller that acts on workers. Runs in the controller process.

An action of the coordinator, or an effect, goes in; what follows from it comes back as further work for the controller's queue. Nothing here calls
into the coordinator, so that no decision is entered while another is being carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core import log
from launcher.core.clock import Clock
from launcher.core.errors import BackendUnavailable, LauncherError
from launcher.core.store import open_store
from launcher.core.types import Generation, RunId, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.events import (
    AllWorkersLost,
    CheckpointCorrupt,
    FirstStep,
    GenerationFormed,
    GenerationPrepared,
    GenerationWithdrawn,
    Stopping,
)
from launcher.record.run_store import RunStore
from launcher.runtime.cluster.worker_group import Invitation, WorkerGroup
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter
from launcher.runtime.controller.effects import (
    AnnounceTerm,
    AskForRecords,
    AttachWorkers,
    EndWorkers,
    ExplainDeath,
    NoteFirstStep,
    StartWorkers,
    Work,
)
from launcher.runtime.controller.inbox import DeathExplained, Inbox
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.takeover import Takeover
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.health import Health
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.orders import Order, messages_of
from launcher.runtime.records.inheritance import inherit
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.transport.rendezvous import Rendezvous
from launcher.runtime.transport.server import MessageServer


class Executor:
    def __init__(
        self,
        leadership: Leadership,
        spec: JobSpec,
        workers: WorkerGroup,
        server: MessageServer,
        contact: tuple[str, int, str],
        registry: WorkerRegistry,
        health: Health,
        lifecycle: WorkerLifecycle,
        reconciler: Reconciler,
        takeover: Takeover,
        tracker: ResizeTracker,
        committer: CheckpointCommitter,
        rendezvous: Rendezvous,
        recorder: RunRecorder,
        status: StatusWriter,
        inbox: Inbox,
        clock: Clock,
        timing: Timing,
    ) -> None:
        """`contact`: host and port of the server, and the secret by which workers know it, in hexadecimal."""
        self._leadership, self._spec, self._workers, self._server, self._contact = leadership, spec, workers, server, contact
        self._registry, self._health, self._lifecycle, self._reconciler = registry, health, lifecycle, reconciler
        self._takeover, self._tracker, self._committer, self._rendezvous = takeover, tracker, committer, rendezvous
        self._recorder, self._status, self._inbox, self._clock, self._timing = recorder, status, inbox, clock, timing
        self._prepared: tuple[Generation, float] | None = None
        """The generation that is being prepared, and since when."""

    def execute(self, work: e.Action | Work) -> list[Work]:
        """Do one thing; what follows from it. Raises LeadershipLost where a new term cannot be begun."""
        match work:
            case e.Prepare() | e.Commit() | e.Withdraw() | e.Leave() | e.Stop():
                self._order(work)
            case e.Release(to):
                self._lifecycle.release(to)
                self._send(work)
            case e.Load(to):
                return self._load(to)
            case e.Evict(worker, reason):
                return self._lifecycle.lose(worker, reason, "evicted")
            case e.AbandonSaves(up_to):
                self._committer.abandon_unfinished(up_to, "a worker of the generation that saved it is gone; it is saved again")
            case e.Changed():
                self._changed(work)
            case e.RollBack(corrupt, detail):
                self._recorder.event(CheckpointCorrupt(checkpoint_step=corrupt, detail=detail))
                return self._roll_back(lambda info: info.step < corrupt)
            case e.AllLost(reason):
                self._recorder.event(AllWorkersLost(reason=reason))
                self._tracker.dropped()
                return self._roll_back(lambda info: True)
            case e.End():
                if self._leadership.check():
                    self._leadership.end = work
                    log.info(f"the run ends: {work.state}. {work.reason}")
            case StartWorkers(count):
                return self._start(count)
            case AttachWorkers(workers):
                self._attach(workers)
            case AnnounceTerm(workers):
                self.tell(workers, m.TermBegan(self._leadership.term))
            case EndWorkers(workers):
                self._end(workers)
                self._reconciler.soon()  # others may be wanted in their places
            case AskForRecords():
                self.ask_for_records()
            case NoteFirstStep(time):
                self._note_first_step(time)
            case ExplainDeath(worker):
                self._workers.why_dead(worker, lambda who, why: self._inbox.put(DeathExplained(who, why)))
        return []

    def _roll_back(self, usable: Callable[[CheckpointInfo], bool]) -> list[Work]:
        self._reconciler.soon()  # a group from the beginning
        return self._takeover.roll_back(usable)

    # orders of the protocol

    def _order(self, order: e.Prepare | e.Commit | e.Withdraw | e.Leave | e.Stop) -> None:
        """Note what an order means for others than the workers, and send it."""
        match order:
            case e.Prepare(formation, leave=leave):
                self._note_prepared(formation, leave=leave)
            case e.Commit(formation):
                for worker in formation.ranks:
                    if (record := self._registry.records.get(worker)) is not None:
                        record.used = True
                self._tracker.committed(formation.generation)
            case e.Withdraw(generation):
                self._tracker.dropped()
                self._recorder.event(GenerationWithdrawn(to_generation=generation))
            case e.Leave(_, to):
                self._health.asked(to, self._clock.monotonic())
            case e.Stop():
                self._recorder.event(Stopping())
        self._send(order)

    def _note_prepared(self, formation: e.Formation, *, leave: bool) -> None:
        now = self._clock.monotonic()
        if leave:
            self._health.asked(self._leadership.group.awaited, now)
        if self._prepared is None or self._prepared[0] != formation.generation:
            self._prepared = (formation.generation, now)
            self._recorder.event(GenerationPrepared(to_generation=formation.generation, world_size=len(formation.ranks)))

    def _changed(self, changed: e.Changed) -> None:
        formation = changed.formation
        self._recorder.generation = formation.generation
        log.bind(generation=formation.generation)
        log.info(f"generation formed of {len(formation.ranks)} workers at step {changed.step}: {changed.cause}")
        self._lifecycle.changed(changed)
        self._reconciler.changed(changed)
        if changed.before:
            self._status.changes += 1
        self._tracker.changed(changed)
        self._recorder.progress.restart(changed.step)
        self.ask_for_records()
        self._rendezvous.forget(formation.generation)
        workers = self._registry.describe(formation.ranks)
        self._recorder.event(GenerationFormed(cause=changed.cause, world_size=len(workers), workers=workers, held=changed.hold))
        self._status.soon()

    def _note_first_step(self, time: str) -> None:
        """After what the worker applied has gone to the coordinator: its step may be the one that makes the first one committed."""
        if not self._recorder.tracking and self._leadership.group.committed > self._recorder.progress.start:
            self._recorder.event(FirstStep(at=time))
            self._status.soon()
            self._recorder.begin_tracking()

    def _send(self, order: Order) -> None:
        self._server.send_all(messages_of(order))

    def tell(self, workers: Iterable[WorkerId], message: m.ToWorker) -> None:
        """Send the same to several."""
        self._server.send_all((worker, message) for worker in workers)

    def ask_for_records(self) -> None:
        """Rank 0 is to say again every row and evaluation that is not known to be durable."""
        self.tell(self._leadership.group.ranks[:1], m.SendRecords())

    def repeat(self, now: float) -> list[Work]:
        """Every `repeat_s` seconds: what may have been lost on the way, or takes too long."""
        leadership = self._leadership
        work: list[Work] = [*leadership.coordinator.outstanding()]
        if self._prepared is not None and now - self._prepared[1] > self._timing.prepare_s:
            work.append(e.Expired(self._prepared[0]))
            self._prepared = None
        if leadership.group.stopping:
            self.tell(leadership.group.ranks, m.Stop())
        self.tell(self._lifecycle.released, m.Release())
        self._committer.abandon_overdue()
        window = 2 * self._spec.config.trainer.log_every_steps
        if self._committer.waiting or self._recorder.progress.lacks_rows(leadership.group.committed, window):
            self.ask_for_records()
        return work

    def _load(self, to: tuple[WorkerId, ...]) -> list[Work]:
        checkpoint = self._status.checkpoint
        try:
            load = m.Load(checkpoint.step, checkpoint.term) if checkpoint is not None else m.Load(init_from=self._origin())
        except LauncherError as error:
            return [e.Failed(str(error), error.exit_code)]
        self.tell(to, load)
        return []

    def _origin(self) -> m.CheckpointSource:
        """The checkpoint that `checkpoint.init_from` means: RUNS/RUN_ID, as the submit has resolved it."""
        runs, _, run_id = str(self._spec.config.checkpoint.init_from).rpartition("/")
        left = inherit(RunStore(open_store(runs), RunId(run_id)))
        if not left.checkpoints:
            raise BackendUnavailable("the run to begin from has no checkpoint", where="checkpoint.init_from", given=f"{runs}/{run_id}")
        return m.CheckpointSource(runs, run_id, left.checkpoints[0].step, left.checkpoints[0].term)

    # processes

    def _start(self, count: int) -> list[Work]:
        started = self._workers.start(count, joins=self._leadership.group.current is not None)
        now = self._clock.monotonic()
        for worker in started:
            self._registry.add(worker, now)
        self._attach(started)
        return [e.Started(worker) for worker in started]

    def _attach(self, workers: Iterable[WorkerId]) -> None:
        invitation = Invitation(self._leadership.term, *self._contact)
        for worker in workers:
            self._workers.attach(worker, invitation, self._inbox.put)

    def _end(self, workers: tuple[WorkerId, ...]) -> None:
        """Unless another controller leads: then they may be its own by now."""
        if workers and self._leadership.check():
            for worker in workers:
                self._server.drop(worker)
            self._workers.end(list(workers))
