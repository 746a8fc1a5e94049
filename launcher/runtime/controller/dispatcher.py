"""What workers say, message by message: handed to the protocol, the policies, the accounts and the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.types import Generation, JsonObject, Step, WorkerId
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.transport.rendezvous import Rendezvous
from launcher.runtime.transport.server import Received


class Office(Protocol):
    """The controller, as it listens."""

    group: m.Coordinator

    def handle(self, event: m.Event) -> None: ...

    def event(self, kind: str, **facts: object) -> None: ...

    def send(self, worker: WorkerId, message: JsonObject) -> None: ...

    def disconnected(self, worker: WorkerId) -> None:
        """A worker's connection ended."""
        ...

    def parts_came(self, save: Save) -> None:
        """All parts of a checkpoint are there."""
        ...


class Dispatcher:
    """`heard` takes every event of the link, in order. Who was given up is not heard."""

    def __init__(
        self, office: Office, steering: Reconciler, accounts: RunRecorder, saver: CheckpointCommitter, board: StatusWriter
    ) -> None:
        self._office, self._steering, self._accounts, self._saver, self._board = office, steering, accounts, saver, board
        self._rendezvous = Rendezvous()
        self.first_seen = False
        """Whether a step of this run was seen to be committed."""
        self._handlers: dict[str, Callable[[WorkerId, Any], None]] = {
            "beat": self._beat,
            "first": self._first,
            "ready": self._ready,
            "loaded": self._loaded,
            "corrupt": self._corrupt,
            "prepared": self._prepared,
            "refused": self._refused,
            "formed": self._formed,
            "left": self._left,
            "broken": self._broken,
            "ended": self._ended,
            "row": self._row,
            "evaluated": self._evaluated,
            "saved": self._saved,
            "save_failed": self._save_failed,
            "error": self._error,
            "draining": self._draining,
            "set": self._key,
            "get": self._key,
        }

    def heard(self, event: Received, now: float) -> None:
        worker, message = event.worker, event.message
        if worker in self._steering.roster:
            if message is None:
                self._office.disconnected(worker)
                return
            self._steering.health.heard(worker, None, now)
        elif worker in self._steering.released:
            if message is None or message["kind"] == "released":
                self._steering.let_go(worker, uploaded=message is not None)
                return
            if message["kind"] not in ("saved", "save_failed"):
                return
        else:
            return
        handler = self._handlers.get(str(message["kind"]))
        if handler is not None:
            handler(worker, message)

    def know_job(self, facts: Any) -> None:
        """What a worker found when it built the job."""
        self._board.device, self._board.total_steps, self._board.data_size = facts["device"], facts["total_steps"], facts["data_size"]

    # the protocol

    def _beat(self, worker: WorkerId, message: Any) -> None:
        """A heartbeat says all that may have been lost on the way."""
        self._steering.beat(worker, message)
        generation = Generation(message["generation"])
        if message["formed_at"] is not None:
            self._office.handle(m.Formed(worker, generation, Step(message["formed_at"])))
        if message["applied"] is not None:
            self._office.handle(m.Applied(worker, generation, Step(message["applied"])))
        if message["outcome"] is not None:
            self._office.handle(m.Ended(worker, generation, m.Outcome(message["outcome"])))
        if message["out"]:
            self._office.handle(m.Left(worker, generation, message["applied"]))

    def _first(self, worker: WorkerId, message: Any) -> None:
        self._beat(worker, message)
        self._steering.stepped(worker, message)
        if not self.first_seen and self._office.group.committed > self._accounts.progress.start:
            self.first_seen = True
            self._office.event("first_step", at=message["time"])
            self._board.due = 0.0
            self._accounts.begin_tracking()

    def _ready(self, worker: WorkerId, message: Any) -> None:
        self.know_job(message)
        facts = {key: message[key] for key in ("device", "threads", "fused", "fuse_reason", "import_s", "build_s")}
        self._office.event("worker_ready", worker=worker, **facts)
        self._steering.ready(worker)
        self._office.handle(m.Ready(worker))

    def _loaded(self, worker: WorkerId, message: Any) -> None:
        self._office.handle(m.Loaded(worker, Step(message["step"])))
        self._steering.soon()

    def _corrupt(self, worker: WorkerId, message: Any) -> None:
        if self._board.checkpoint is not None and message["step"] == self._board.checkpoint.step:
            self._office.handle(m.Corrupt(worker, message["detail"]))

    def _prepared(self, worker: WorkerId, message: Any) -> None:
        self._office.handle(m.Prepared(worker, Generation(message["generation"])))

    def _refused(self, worker: WorkerId, message: Any) -> None:
        self._office.event("generation_refused", worker=worker, to_generation=message["generation"], detail=message["detail"])
        self._office.handle(m.Refused(worker, Generation(message["generation"]), message["detail"]))

    def _formed(self, worker: WorkerId, message: Any) -> None:
        timeline = self._steering.timeline
        if timeline is not None and message["generation"] == timeline.generation:
            timeline.formed_by(worker, message)
        self._office.handle(m.Formed(worker, Generation(message["generation"]), Step(message["step"])))

    def _left(self, worker: WorkerId, message: Any) -> None:
        self._steering.health.answered(worker)
        self._office.handle(m.Left(worker, Generation(message["generation"]), message["applied"]))

    def _broken(self, worker: WorkerId, message: Any) -> None:
        self._office.event("collective_left", worker=worker, detail=message["detail"])

    def _ended(self, worker: WorkerId, message: Any) -> None:
        generation = Generation(message["generation"])
        self._office.handle(m.Applied(worker, generation, Step(message["applied"])))
        self._office.handle(m.Ended(worker, generation, m.Outcome(message["outcome"])))

    # steps and checkpoints

    def _row(self, worker: WorkerId, message: Any) -> None:
        self._accounts.progress.take(message)

    def _evaluated(self, worker: WorkerId, message: Any) -> None:
        if self._accounts.evaluated(message):
            self._office.event("evaluated", at=message["step"], metrics=message["metrics"])
            self._board.due = 0.0

    def _saved(self, worker: WorkerId, message: Any) -> None:
        """A part of a checkpoint, also of a worker that has left meanwhile."""
        part = CheckpointPart.from_json(message["part"])
        save = Save(part.step, part.generation)
        if not self._begins(worker, save):
            return
        self._office.handle(m.Applied(worker, save.generation, save.step))
        self._steering.saved(message["seconds"])
        if self._saver.take(part):
            self._office.parts_came(save)

    def _save_failed(self, worker: WorkerId, message: Any) -> None:
        save = Save(Step(message["step"]), Generation(message["generation"]))
        if self._begins(worker, save):
            self._saver.abandon(save, message["detail"])

    def _begins(self, worker: WorkerId, save: Save) -> bool:
        """False when it is decided already, which the worker has not heard then."""
        if self._saver.done(save):
            self._office.send(worker, {"kind": "checkpoint", "step": save.step, "generation": save.generation})
            return False
        old = save.generation < self._office.group.generation
        if self._saver.take_over(save) if old else self._saver.begins(save):
            self._office.handle(m.SaveStarted(save.step, save.generation))
        return True

    # a worker's own state

    def _error(self, worker: WorkerId, message: Any) -> None:
        reason, ranks = str(message["reason"]), self._office.group.ranks
        rank = ranks.index(worker) if worker in ranks else None
        self._office.event("worker_error", worker=worker, rank=rank, at=message["step"], detail=reason.partition("\n")[0])
        if self._board.checkpoint is not None and reason.startswith("the loss"):
            reason += f"\n  last good checkpoint: step {self._board.checkpoint.step}"
        self._steering.lose(worker, reason, "error", error=message)

    def _draining(self, worker: WorkerId, message: Any) -> None:
        self._steering.drain(self._steering.roster.hands[worker], float(message["deadline_s"]), str(message["detail"]))

    def forget_keys(self, below: Generation) -> None:
        """By what ranks of earlier generations found each other."""
        self._rendezvous.forget(below)

    def _key(self, worker: WorkerId, message: JsonObject) -> None:
        for receiver, answer in self._rendezvous.heard(worker, message):
            self._office.send(receiver, answer)
