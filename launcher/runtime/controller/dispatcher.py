"""What comes in, item by item: what it means for the coordinator, the policies, the record and the checkpoints. Runs in the controller process.

Messages become events of the protocol, which are returned as work for the controller's queue. A worker that was evicted is not heard any more.
"""

from __future__ import annotations

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.clock import Clock, timestamp
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Step, Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.desired import Desired
from launcher.record.events import (
    CheckpointCommitted,
    CheckpointFailed,
    ClusterBoundsRefused,
    CollectiveLeft,
    ConnectionClosed,
    Evaluated,
    GenerationRefused,
    WorkerError,
    WorkerReady,
    WorkerStarted,
)
from launcher.record.rows import LogLine
from launcher.record.run_store import RunStore
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused
from launcher.runtime.controller import inbox
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.deaths import CONNECTION_ENDED, Deaths
from launcher.runtime.controller.effects import AnnounceTerm, ExplainDeath, NoteFirstStep, Work
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.health import Beat, Health
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.transport.rendezvous import Rendezvous
from launcher.runtime.transport.server import Disconnected, MessageServer, Received


class Dispatcher:
    def __init__(
        self,
        run: RunStore,
        spec: JobSpec,
        leadership: Leadership,
        server: MessageServer,
        registry: WorkerRegistry,
        health: Health,
        lifecycle: WorkerLifecycle,
        reconciler: Reconciler,
        tracker: ResizeTracker,
        committer: CheckpointCommitter,
        rendezvous: Rendezvous,
        recorder: RunRecorder,
        status: StatusWriter,
        output: WorkerOutput,
        deaths: Deaths,
        clock: Clock,
    ) -> None:
        self._run, self._spec, self._leadership, self._server = run, spec, leadership, server
        self._registry, self._health, self._lifecycle, self._reconciler = registry, health, lifecycle, reconciler
        self._tracker, self._committer, self._rendezvous = tracker, committer, rendezvous
        self._recorder, self._status, self._output, self._deaths, self._clock = recorder, status, output, deaths, clock

    def dispatch(self, item: inbox.Item) -> list[Work]:
        """What follows from it."""
        match item:
            case Received(worker, message):
                return self._received(worker, message)
            case Disconnected(worker, invalid):
                return self._disconnected(worker, invalid)
            case inbox.LinePrinted():
                self._log(item)
            case inbox.LedgerDurable(step, term):
                self._ledger_durable(step, term)
            case inbox.CheckpointDecided():
                return self._checkpoint_decided(item)
            case Attached() | AttachRefused() | AttachFailed():
                return self._attached(item)
            case inbox.DesiredChanged(desired):
                return self._desired_changed(desired)
            case inbox.HigherTermSeen():
                self._leadership.check()
            case inbox.NodeDraining(drain):
                deadline_s = drain.deadline_s if drain.deadline_s is not None else self._spec.config.elastic.drain_s
                for record in self._registry.on_node(drain.node_id):
                    self._lifecycle.drain(record.worker, deadline_s, drain.detail)
                self._reconciler.soon()
            case inbox.DeathExplained(worker, why):
                self._deaths.ray_said(worker, why)
            case inbox.PodBoundsRefused(why):
                self._recorder.event(ClusterBoundsRefused(detail=why))
            case inbox.StoreFailed(error):
                return [e.Failed(str(error), ExitCode.INFRASTRUCTURE)]
        return []

    # connections

    def _received(self, worker: WorkerId, message: m.ToController) -> list[Work]:
        if worker in self._registry:
            self._health.heard(worker, None, self._clock.monotonic())
            return self._heard(worker, message)
        if worker in self._lifecycle.released:
            return self._heard_of_released(worker, message)
        return []

    def _heard_of_released(self, worker: WorkerId, message: m.ToController) -> list[Work]:
        """Of a worker that has left with a change only its part of a checkpoint still counts."""
        match message:
            case m.Released():
                return self._lifecycle.let_go(worker, uploaded=True)
            case m.Saved():
                return self._saved(worker, message)
            case m.SaveFailed():
                return self._save_failed(worker, message)
        return []

    def _disconnected(self, worker: WorkerId | None, invalid: str) -> list[Work]:
        """The first notice of a death, or of another controller's taking over. Ray is asked for the cause."""
        if invalid:
            self._recorder.event(ConnectionClosed(worker=worker, detail=invalid))
        if worker is None or self._leadership.end is not None:
            return []  # after the end it was ended here
        if worker in self._lifecycle.released:
            return self._lifecycle.let_go(worker, uploaded=False)
        record = self._registry.records.get(worker)
        if record is None:
            return []
        ranks = self._leadership.group.ranks
        rank = f"rank {ranks.index(worker)}, " if worker in ranks else ""
        where = f"{rank}pid {record.pid} on {record.host}"
        why = f"it sent what is no message: {invalid}" if invalid else CONNECTION_ENDED
        if not invalid:
            self._deaths.lost(worker, ranks.index(worker) if worker in ranks else None, record.pid, record.host, self._clock.monotonic())
        return [ExplainDeath(worker), *self._lifecycle.lose(worker, f"worker {worker} ({where}) died: {why}", "lost")]

    def _attached(self, answer: Attached | AttachRefused | AttachFailed) -> list[Work]:
        worker = answer.worker
        record = self._registry.records.get(worker)
        if record is None:
            return []
        match answer:
            case AttachFailed(_, why):
                return self._lifecycle.lose(worker, f"worker {worker} died at its start: {why}", "lost")
            case AttachRefused():
                self._leadership.check()  # it reports to a later term
                return []
            case Attached(_, described):
                record.description = described
                self._health.heard(worker, None, self._clock.monotonic())
                self._output.follow(worker, described, from_end=False)
                self._recorder.event(WorkerStarted(worker=worker, pid=described.pid, node=described.node))
        return [AnnounceTerm((worker,))]  # the term may be another than when the worker was called

    # messages

    def _heard(self, worker: WorkerId, message: m.ToController) -> list[Work]:
        match message:
            case m.Beat():
                return self._beat(worker, message)
            case m.FirstStep():
                return self._first_step(worker, message)
            case m.Prepared(generation):
                return [e.Prepared(worker, generation)]
            case m.Refused(generation, detail):
                self._recorder.event(GenerationRefused(worker=worker, to_generation=generation, detail=detail))
                return [e.Refused(worker, generation, detail)]
            case m.Formed(generation, step):
                self._tracker.formed_by(worker, message)
                return [e.Formed(worker, generation, step)]
            case m.Left(generation, applied):
                self._health.answered(worker)
                return [e.Left(worker, generation, applied)]
            case m.Ended(generation, applied, outcome):
                return [e.Applied(worker, generation, applied), e.Ended(worker, generation, outcome)]
            case m.Broken(detail):
                self._recorder.event(CollectiveLeft(worker=worker, detail=detail))
            case m.Row():
                self._recorder.progress.take(message)
            case m.Evaluated(step, metrics):
                if self._recorder.evaluated(message):
                    self._recorder.event(Evaluated(at=step, metrics=metrics))
                    self._status.soon()
            case m.Saved():
                return self._saved(worker, message)
            case m.SaveFailed():
                return self._save_failed(worker, message)
            case m.SetKey() | m.GetKey():
                self._server.send_all(self._rendezvous.heard(worker, message))
            case m.Draining(_, deadline_s, detail):
                self._lifecycle.drain(worker, deadline_s, detail)
                self._reconciler.soon()
            case m.Error():
                return self._error(worker, message)
            case m.Ready() | m.Loaded() | m.Corrupt():
                return self._before_training(worker, message)
        return []

    def _beat(self, worker: WorkerId, beat: m.Beat) -> list[Work]:
        """A heartbeat says all that may have been lost on the way."""
        record = self._registry.records[worker]
        record.busy_s, record.step_s = beat.busy_s, beat.step_s
        self._health.heard(worker, _signs_in(beat), self._clock.monotonic())
        work: list[Work] = []
        if beat.formed_at is not None:
            work.append(e.Formed(worker, beat.generation, beat.formed_at))
        if beat.applied is not None:
            work.append(e.Applied(worker, beat.generation, beat.applied))
        if beat.outcome is not None:
            work.append(e.Ended(worker, beat.generation, beat.outcome))
        if beat.out:
            work.append(e.Left(worker, beat.generation, beat.applied))
        return work

    def _first_step(self, worker: WorkerId, first: m.FirstStep) -> list[Work]:
        self._tracker.stepped(worker, first.beat.generation)
        return [*self._beat(worker, first.beat), NoteFirstStep(first.time)]

    def _before_training(self, worker: WorkerId, message: m.Ready | m.Loaded | m.Corrupt) -> list[Work]:
        match message:
            case m.Ready(job, threads, fused, fuse_reason, import_s, build_s):
                self._status.know_job(job)
                self._recorder.event(
                    WorkerReady(
                        worker=worker,
                        device=job.device,
                        threads=threads,
                        fused=fused,
                        fuse_reason=fuse_reason,
                        import_s=import_s,
                        build_s=build_s,
                    )
                )
                self._lifecycle.ready(worker)
                self._tracker.newcomer_ready(self._leadership.group.committed)
                self._reconciler.soon()
                return [e.Ready(worker)]
            case m.Loaded(step):
                self._reconciler.soon()
                return [e.Loaded(worker, step)]
            case m.Corrupt(step, detail):
                checkpoint = self._status.checkpoint
                return [e.Corrupt(worker, detail)] if checkpoint is not None and step == checkpoint.step else []

    def _error(self, worker: WorkerId, error: m.Error) -> list[Work]:
        reason, ranks = error.reason, self._leadership.group.ranks
        rank = ranks.index(worker) if worker in ranks else None
        self._recorder.event(WorkerError(worker=worker, rank=rank, at=error.step, detail=reason.partition("\n")[0]))
        if self._status.checkpoint is not None and reason.startswith("the loss"):
            reason += f"\n  last good checkpoint: step {self._status.checkpoint.step}"
        return self._lifecycle.lose(worker, reason, "error", error=error)

    # checkpoints

    def _saved(self, worker: WorkerId, saved: m.Saved) -> list[Work]:
        """A part of a checkpoint, also of a worker that has left meanwhile."""
        part = saved.part
        save = Save(part.step, part.generation)
        if self._decided(worker, save):
            return []
        begun = self._begin(save)
        self._tracker.saved(saved.seconds)
        self._committer.take(part)
        return [*begun, e.Applied(worker, save.generation, save.step)]

    def _save_failed(self, worker: WorkerId, failed: m.SaveFailed) -> list[Work]:
        save = Save(failed.step, failed.generation)
        if self._decided(worker, save):
            return []
        begun = self._begin(save)
        self._committer.abandon(save, failed.detail)
        return begun

    def _decided(self, worker: WorkerId, save: Save) -> bool:
        """Whether it is decided already, which the worker has not heard then."""
        if self._committer.done(save):
            self._server.send(worker, m.CheckpointDecided(save.step, save.generation))
            return True
        return False

    def _begin(self, save: Save) -> list[Work]:
        old = save.generation < self._leadership.group.generation
        first = self._committer.take_over(save) if old else self._committer.begins(save)
        return [e.SaveStarted(save.step, save.generation)] if first else []

    def _checkpoint_decided(self, decided: inbox.CheckpointDecided) -> list[Work]:
        if decided.term != self._leadership.term:
            return []  # training was rolled back meanwhile, and this one is of another line
        if decided.failure:
            self._recorder.event(CheckpointFailed(checkpoint_step=decided.step, detail=decided.failure))
        elif (info := CheckpointInfo(decided.step, decided.term)) != self._status.checkpoint:
            self._status.checkpoint = info
            self._committer.saved(decided.step)
            self._recorder.event(CheckpointCommitted(checkpoint_step=decided.step, uri=f"{self._run.uri}/{info.key}"))
            self._committer.retain()
        message = m.CheckpointDecided(decided.step, decided.generation)
        self._server.send_all((worker, message) for worker in (*self._registry.records, *self._lifecycle.released))
        self._status.soon()
        return [e.SaveDecided(decided.step, decided.failure, decided.generation)]

    def _ledger_durable(self, step: Step, term: Term) -> None:
        """Told to those that hold a state of the term: for whoever begins on a checkpoint later, these steps may be of another line."""
        if term == self._leadership.term:
            holding = [worker for worker, peer in self._leadership.group.peers.items() if peer.applied is not None]
            self._server.send_all((worker, m.Durable(step)) for worker in holding)

    # the rest

    def _desired_changed(self, desired: Desired) -> list[Work]:
        before, self._leadership.desired = self._leadership.desired, desired
        if desired.state == "stopped":
            return [e.StopWanted()]
        if desired.workers != before.workers:
            self._reconciler.desired_changed(desired)
        return []

    def _log(self, printed: inbox.LinePrinted) -> None:
        if not self._deaths.printed(printed.worker, printed.line):
            return
        ranks = self._leadership.group.ranks
        self._recorder.line(
            LogLine(
                time=timestamp(self._clock.now()),
                worker=printed.worker,
                rank=ranks.index(printed.worker) if printed.worker in ranks else None,
                generation=self._recorder.generation,
                stream=printed.stream,
                line=printed.line,
            )
        )


def _signs_in(beat: m.Beat) -> Beat:
    """What of a heartbeat tells about a worker's health."""
    return Beat(
        generation=beat.generation,
        applied=beat.applied or Step(0),
        progress=beat.progress,
        waiting=beat.waiting,
        busy_s=beat.busy_s or 0.0,
        phase=beat.phase,
    )
