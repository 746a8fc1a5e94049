"""The controller of one run: observe, decide, act. It is the only place that acts, and it never touches a tensor.

Everything that happens comes through one queue: the link's messages, what Ray says, wishes, the writer's answers. The
worker group's life is decided by membership.decide; what is committed is shown, what is not is kept back.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import BackendUnavailable, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.run_store import LEASE_S, STATUS_INTERVAL_S, Desired, RunStore, TermBase
from launcher.core.store import is_local, local_path, open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, WorkerId
from launcher.runtime import membership as m
from launcher.runtime.entrypoint import FENCED
from launcher.runtime.link import LinkEvent, LinkServer
from launcher.runtime.link_store import Rendezvous
from launcher.runtime.log_tail import LogTail
from launcher.runtime.office import base_on_checkpoint, base_on_workers, inherit, whole_group
from launcher.runtime.progress import Progress
from launcher.runtime.ray_metrics import RayMetrics
from launcher.runtime.recorder import Recorder
from launcher.runtime.saver import Saver
from launcher.runtime.store_writer import StoreWriter
from launcher.runtime.watcher import Watcher
from launcher.runtime.worker_group import WorkerGroup, wait_for_ray
from launcher.spec.job import JobSpec
from launcher.spec.status import CheckpointRef, JobState, RunStatus
from launcher.tracking.sinks import Tracker, open_tracker

TICK_S = 0.1
LEDGER_INTERVAL_S = 10.0
SILENT_S = 20.0
BLAME_S = 5.0
"""After a worker had to leave its collective: how long to wait for news of the one that caused it."""
ATTACH_TIMEOUT_S = 15.0

Call = Callable[[], None]


class Fenced(Exception):
    """A higher term was claimed: this controller is no longer in office."""


class Controller:
    def __init__(self, run: RunStore, state_folder: Path, *, clock: Clock) -> None:
        self._run, self._state_folder, self._clock = run, state_folder, clock
        self._inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._secret = secrets.token_bytes(32)
        self._heard_at: dict[WorkerId, float] = {}
        self._facts: dict[WorkerId, JsonObject] = {}
        self._broken: dict[WorkerId, tuple[float, str]] = {}
        self._rendezvous = Rendezvous()
        self._job_state = JobState.STARTING
        self._reason = "starting Ray"
        self._end: m.End | None = None
        self._status_sequence = 0
        self._status_due = 0.0
        self._ledger_due = 0.0
        self._device = ""
        self._dashboard = ""
        self._total_steps: int | None = None
        self._data_size = 0
        self._first_seen = False
        self._fenced = False
        self._serving = False
        """Whether there is a link, and there may be workers."""
        self._failure: LauncherError | None = None
        self._tracker: Tracker | None = None

    # taking office

    def take_office(self) -> bool:
        """Claim a term, look, say what it builds on, and begin. False when the run has ended and nobody wants more of it."""
        desired, spec = self._wishes()
        self._desired, self._spec = desired, spec
        if inherit(self._run).ended(desired):
            return False
        self._term = self._run.claim_term(f"{socket.gethostname()}:{os.getpid()}", timestamp(self._clock.now()))
        self._left = inherit(self._run)
        self._writer = StoreWriter(self._run.store.uri, self._writer_failed)
        self._recorder = Recorder(self._run, self._term, self._writer, self._clock)
        self._watcher = Watcher(
            self._run, self._term, wished=lambda wish: self._post(lambda: self._wished(wish)), fenced=lambda: self._post(self._fence)
        )
        self._group = m.assemble([], checkpoint=None, load=False)
        self._progress = Progress.after(self._left, Step(0), spec)
        self._workers = WorkerGroup(spec, self._run.store.uri, self._run.run_id, self._state_folder / "code")
        if desired.state == "stopped":
            self._found(base_on_checkpoint(self._left, self._newest()))
            self._act((m.End(JobState.STOPPED, "stopped before training began", ExitCode.STOPPED),))
            return True
        try:
            place = wait_for_ray(self._state_folder / "ray.json", self._state_folder / "error.txt")
            self._dashboard = place.dashboard
            self._workers.connect(place)
            self._link = LinkServer(
                self._secret, lambda event: self._post(lambda: self._heard(event)), host=_address_towards(place.address)
            )
            self._address = self._link.start()
        except (LauncherError, OSError) as error:
            self._found(base_on_checkpoint(self._left, self._newest()))
            reason = str(error) if isinstance(error, LauncherError) else f"the controller cannot listen for its workers: {error}"
            self._act((m.End(JobState.FAILED, reason, ExitCode.INFRASTRUCTURE),))
            return True
        self._tail = LogTail(lambda worker, stream, line: self._post(lambda: self._log(worker, stream, line)))
        self._saver = Saver(
            self._run,
            self._term,
            self._writer,
            spec,
            decided=lambda step, failure: self._post(lambda: self._save_decided(step, failure)),
            fenced=lambda: self._post(self._fence),
            clock=self._clock,
        )
        self._serving = True
        if not self._adopt():
            self._start_from(self._newest())
        return True

    def _wishes(self) -> tuple[Desired, JobSpec]:
        desired = self._run.desired()
        document = self._run.spec(desired.spec) if desired is not None else None
        if desired is None or document is None:
            raise BackendUnavailable("the run has no spec", where=self._run.uri, next="submit it again")
        return desired, JobSpec.from_json(document)

    def _newest(self) -> CheckpointInfo | None:
        return next(iter(self._left.checkpoints), None)

    def _found(self, base: TermBase) -> None:
        if not self._run.create_base(self._term, base):
            raise Fenced
        self._progress = Progress.after(self._left, base.start if base.adopted_step is None else self._left.recorded, self._spec)
        adopted = base.adopted_step is not None
        lost = 0 if adopted else max(0, self._left.reached - base.start)
        before = self._left.status
        self._steps_lost = (before.steps_lost if before else 0) + lost
        self._checkpoint = self._newest() if adopted else next((c for c in self._left.checkpoints if c.step == base.checkpoint_step), None)
        self._event(
            "term_started", from_term=base.from_term, checkpoint_step=base.checkpoint_step, adopted_step=base.adopted_step, steps_lost=lost
        )

    def _adopt(self) -> bool:
        """Take over the workers of an earlier term if their group is whole; otherwise see them off."""
        found = self._workers.find()
        if not found:
            return False
        answers: queue.SimpleQueue[tuple[WorkerId, JsonObject | None]] = queue.SimpleQueue()
        for worker in found:
            self._workers.attach(worker, self._term, self._address, self._secret.hex(), lambda w, d, _: answers.put((w, d)))
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while len(self._facts) < len(found) and time.monotonic() < deadline:
            try:
                worker, description = answers.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                break
            if description:
                self._facts[worker] = description
            else:
                break
        whole = whole_group(self._facts.values(), self._spec.number) if len(self._facts) == len(found) else None
        if whole is None:
            self._workers.end(found)
            self._facts.clear()
            return False
        generation, members = whole
        self._found(base_on_workers(self._left))
        self._group = m.adopt(members, generation)
        facts: Any = next(iter(self._facts.values()))
        self._device, self._total_steps, self._data_size = facts["device"], facts["total_steps"], facts["data_size"]
        self._job_state, self._reason = JobState.RUNNING, ""
        self._first_seen = True
        self._event("workers_adopted", workers=self._member_facts())
        for worker, facts in self._facts.items():
            self._heard_at[worker] = self._clock.monotonic()
            self._follow(worker, facts, from_end=True)
        if self._desired.state == "stopped":
            self._decide(m.StopWanted())
        return True

    def _start_from(self, checkpoint: CheckpointInfo | None) -> None:
        self._found(base_on_checkpoint(self._left, checkpoint))
        init = self._spec.config.checkpoint.init_from if checkpoint is None else None
        started = self._start(self._desired.workers.target)
        self._group = m.assemble(
            started, checkpoint=checkpoint.step if checkpoint else None, load=checkpoint is not None or init is not None
        )
        self._reason = "workers start"

    def _start(self, count: int) -> list[WorkerId]:
        started = self._workers.start(count)
        for worker in started:
            self._workers.attach(
                worker, self._term, self._address, self._secret.hex(), lambda w, d, why: self._post(lambda: self._attached(w, d, why))
            )
        return started

    # the loop

    def serve(self) -> int:
        """Until the run has its final state; gives the process's exit code."""
        while self._end is None and not self._fenced:
            try:
                call = self._inbox.get(timeout=TICK_S)
            except queue.Empty:
                call = None
            while call is not None:
                call()
                try:
                    call = self._inbox.get_nowait()
                except queue.Empty:
                    call = None
            self._tick()
        if self._fenced:
            print(f"term {self._term}: a higher term was claimed; this controller ends", flush=True)
            return FENCED
        return self._close()

    def _post(self, call: Call) -> None:
        self._inbox.put(call)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        for worker, at in self._heard_at.items():
            if now - at > SILENT_S:
                self._decide(m.Lost(worker, f"worker {worker} has been silent for {SILENT_S:g} s"))
        for worker, (at, detail) in self._broken.items():
            if now - at > BLAME_S:
                self._decide(m.Failed(worker, f"the workers lost each other: {detail}", ExitCode.JOB_FAILED))
        if self._end is not None:
            return
        self._commit()
        for report in self._tracker.reports() if self._tracker is not None else ():
            kind = str(report.pop("kind"))
            self._event(kind, **report)
        due = now >= self._ledger_due
        if due:
            self._ledger_due = now + LEDGER_INTERVAL_S
        self._recorder.flush(ledger=due, durable=lambda step: self._post(lambda: self._durable(step)))
        if now >= self._status_due:
            self._write_status()

    def _decide(self, event: m.Event) -> None:
        self._group, actions = m.decide(self._group, event)
        self._act(actions)

    def _act(self, actions: Sequence[m.Action]) -> None:
        for action in actions:
            match action:
                case m.Load():
                    self._load()
                case m.Form(generation=generation):
                    self._form(generation)
                case m.Stop():
                    self._state(JobState.STOPPING, "asked to stop")
                    self._event("stopping")
                    self._broadcast({"kind": "stop"})
                case m.Leave():
                    self._broadcast({"kind": "leave"})
                case m.RollBack(corrupt=corrupt, detail=detail):
                    self._roll_back(corrupt, detail)
                case m.End():
                    self._end = action

    def _broadcast(self, message: JsonObject) -> None:
        for worker in self._group.members:
            self._link.send(worker, message)

    def _load(self) -> None:
        self._state(JobState.STARTING, "workers load their state")
        message: JsonObject = {"kind": "load", "init_from": None}
        if self._checkpoint is not None:
            message |= {"step": self._checkpoint.step, "term": self._checkpoint.term}
        else:
            try:
                message["init_from"] = self._origin()
            except LauncherError as error:
                self._end = m.End(JobState.FAILED, str(error), error.exit_code)
                return
        self._broadcast(message)

    def _origin(self) -> JsonObject:
        """The checkpoint that `checkpoint.init_from` means: RUNS/RUN_ID, as the submit has resolved it."""
        runs, _, run_id = str(self._spec.config.checkpoint.init_from).rpartition("/")
        left = inherit(RunStore(open_store(runs), RunId(run_id)))
        if not left.checkpoints:
            raise BackendUnavailable("the run to begin from has no checkpoint", where="checkpoint.init_from", given=f"{runs}/{run_id}")
        return {"runs": runs, "run_id": run_id, "step": left.checkpoints[0].step, "term": left.checkpoints[0].term}

    def _form(self, generation: Generation) -> None:
        size = len(self._group.members)
        for worker, member in self._group.members.items():
            self._link.send(worker, {"kind": "form", "generation": generation, "rank": member.rank, "world_size": size})
        self._state(JobState.RUNNING, "")
        self._event("generation_formed", world_size=size, workers=self._member_facts())

    def _roll_back(self, corrupt: Step, detail: str) -> None:
        """Every roll-back is a new term, also with the same controller: the next older checkpoint, or the beginning."""
        if self._checkpoint is None or self._checkpoint.step != corrupt:
            return  # another worker has said so already
        self._event("checkpoint_corrupt", checkpoint_step=corrupt, detail=detail)
        self._recorder.flush(ledger=False)
        older = next((info for info in self._left.checkpoints if info.step < corrupt), None)
        self._term = self._run.claim_term(f"{socket.gethostname()}:{os.getpid()}", timestamp(self._clock.now()))
        left = inherit(self._run)
        self._left = replace(left, checkpoints=tuple(info for info in left.checkpoints if info.step < corrupt))
        self._recorder = Recorder(self._run, self._term, self._writer, self._clock)
        self._watcher.term = self._term
        self._saver.term = self._term
        self._found(base_on_checkpoint(self._left, older))
        members = {worker: replace(member, loaded=False) for worker, member in self._group.members.items()}
        load = older is not None or self._spec.config.checkpoint.init_from is not None
        if not load:
            # What was loaded half must not be trained on: these workers go, new ones begin afresh.
            self._workers.end(list(members))
            self._facts.clear()
            self._heard_at.clear()
            self._group = m.assemble(self._start(len(members)), checkpoint=None, load=False)
            return
        self._group = m.Group(
            phase=m.Phase.LOADING, generation=self._group.generation, members=members, checkpoint=older.step if older else None, load=True
        )
        self._load()

    # what is heard

    def _attached(self, worker: WorkerId, description: JsonObject | None, why: str) -> None:
        if worker not in self._group.members:
            return
        if description is None:
            self._decide(m.Lost(worker, f"worker {worker} died at its start: {why}"))
            return
        self._facts[worker] = description
        self._heard_at[worker] = self._clock.monotonic()
        self._follow(worker, description, from_end=False)
        self._event("worker_started", worker=worker, pid=description["pid"], node=description["node"])

    def _follow(self, worker: WorkerId, facts: JsonObject, *, from_end: bool) -> None:
        for stream in ("stdout", "stderr"):
            path = str(facts.get(stream) or "")
            if path and facts["node"] == socket.gethostname():
                self._tail.follow(worker, stream, Path(path), from_end=from_end)

    def _heard(self, event: LinkEvent) -> None:
        worker, message = event.worker, event.message
        if worker not in self._group.members:
            return
        if message is None:
            if self._group.phase is not m.Phase.ENDED:
                self._heard_at.pop(worker, None)
                self._workers.why_dead(worker, lambda w, why: self._post(lambda: self._gone(w, why)))
                if self._group.phase is m.Phase.TRAINING:
                    self._broadcast({"kind": "leave"})
            return
        self._heard_at[worker] = self._clock.monotonic()
        kind: Any = message["kind"]
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(worker, message)

    def _gone(self, worker: WorkerId, why: str) -> None:
        member = self._group.members.get(worker)
        facts = self._facts.get(worker, {})
        if member is None or self._end is not None:
            return
        where = f"rank {member.rank}, pid {facts.get('pid')} on {facts.get('node')}"
        self._event("worker_lost", worker=worker, rank=member.rank, pid=facts.get("pid"), node=facts.get("node"), detail=why)
        self._decide(m.Lost(worker, f"worker {worker} ({where}) died" + (f": {why}" if why else "")))

    def _on_beat(self, worker: WorkerId, message: Any) -> None:
        if message["generation"] == self._group.generation:
            self._decide(m.Applied(worker, Step(message["applied"])))

    def _on_first(self, worker: WorkerId, message: Any) -> None:
        self._on_beat(worker, message)
        if not self._first_seen and self._group.committed > self._progress.start:
            self._first_seen = True
            self._event("first_step", at=message["time"])
            self._status_due = 0.0
            self._begin_tracking()

    def _on_ready(self, worker: WorkerId, message: Any) -> None:
        self._device, self._total_steps, self._data_size = message["device"], message["total_steps"], message["data_size"]
        member = self._group.members[worker]
        if not member.ready:
            facts = {key: message[key] for key in ("device", "threads", "fused", "fuse_reason", "import_s", "build_s")}
            self._event("worker_ready", worker=worker, **facts)
        self._decide(m.Ready(worker))

    def _on_loaded(self, worker: WorkerId, message: Any) -> None:
        self._decide(m.Loaded(worker, Step(message["step"])))

    def _on_corrupt(self, worker: WorkerId, message: Any) -> None:
        self._decide(m.Corrupt(worker, message["detail"]))

    def _on_row(self, worker: WorkerId, message: Any) -> None:
        self._progress.take({key: value for key, value in message.items() if key != "kind"})

    def _on_evaluated(self, worker: WorkerId, message: Any) -> None:
        if not self._progress.evaluated(message["step"], message["metrics"]):
            return
        row: JsonObject = {"step": message["step"], "time": timestamp(self._clock.now()), **_named("eval_", message["metrics"])}
        self._recorder.row(row)
        self._event("evaluated", at=message["step"], metrics=message["metrics"])
        self._track(message["step"], row)
        self._status_due = 0.0

    def _on_saved(self, worker: WorkerId, message: Any) -> None:
        part = CheckpointPart.from_json(message["part"])
        self._decide(m.Applied(worker, part.step))
        if self._saver.begins(part.step):
            self._decide(m.SaveStarted(part.step))
        if self._saver.take(part):
            self._commit()
            self._recorder.flush(ledger=True, durable=lambda step: self._post(lambda: self._durable(step)))
            self._saver.commit(part.step)

    def _on_save_failed(self, worker: WorkerId, message: Any) -> None:
        if self._saver.begins(message["step"]):
            self._decide(m.SaveStarted(Step(message["step"])))
        self._saver.abandon(message["step"], message["detail"])

    def _on_outcome(self, worker: WorkerId, message: Any) -> None:
        self._decide(m.Applied(worker, Step(message["applied"])))
        self._decide(m.Ended(worker, m.Outcome(message["outcome"])))

    def _on_broken(self, worker: WorkerId, message: Any) -> None:
        """It left its collective; who is to blame is told by that one's own connection or error, in a moment."""
        self._event("collective_left", worker=worker, detail=message["detail"])
        self._broken.setdefault(worker, (self._clock.monotonic(), str(message["detail"])))

    def _on_error(self, worker: WorkerId, message: Any) -> None:
        rank = self._group.members[worker].rank
        reason = str(message["reason"])
        self._event("worker_error", worker=worker, rank=rank, at=message["step"], detail=reason.partition("\n")[0])
        if self._checkpoint is not None and reason.startswith("the loss"):
            reason += f"\n  last good checkpoint: step {self._checkpoint.step}"
        self._decide(m.Failed(worker, reason, ExitCode(message["exit_code"])))

    def _on_set(self, worker: WorkerId, message: JsonObject) -> None:
        for receiver, answer in self._rendezvous.heard(worker, message):
            self._link.send(receiver, answer)

    _on_get = _on_set

    def _wished(self, wish: Desired) -> None:
        self._desired = wish
        if wish.state == "stopped":
            self._decide(m.StopWanted())

    def _fence(self) -> None:
        self._fenced = True

    def _log(self, worker: WorkerId, stream: str, line: str) -> None:
        member = self._group.members.get(worker)
        self._recorder.line(
            {
                "time": timestamp(self._clock.now()),
                "worker": worker,
                "rank": member.rank if member else None,
                "generation": self._group.generation,
                "stream": stream,
                "line": line,
            }
        )

    def _writer_failed(self, error: LauncherError) -> None:
        """On the writer's thread."""
        self._failure = error
        self._post(lambda: self._store_failed(error))

    def _store_failed(self, error: LauncherError) -> None:
        if self._end is None:
            self._act((m.Leave(), m.End(JobState.FAILED, str(error), ExitCode.INFRASTRUCTURE)))

    # what is shown

    def _commit(self) -> None:
        """Pass on the rows of steps that every member holds."""
        for first, row in self._progress.committed(self._group.committed):
            self._recorder.steps(row, first=first, generation=self._group.generation, batch=self._spec.config.trainer.global_batch_size)
            self._track(int(str(row["step"])), row)

    def _begin_tracking(self) -> None:
        # After the first step, so that it costs the start nothing.
        here = is_local(self._run.uri)
        folder = local_path(self._run.uri) / "tracking" if here else self._state_folder / "tracking" / self._run.run_id
        self._tracker = open_tracker(self._spec, folder)
        self._tracker.start()

    def _track(self, step: int, row: JsonObject) -> None:
        if self._tracker is None and self._first_seen:
            self._begin_tracking()
        if self._tracker is not None:
            self._tracker.metrics(step, {key: value for key, value in row.items() if key not in ("step", "time")})

    def _durable(self, step: int) -> None:
        self._broadcast({"kind": "durable", "step": step})

    def _save_decided(self, step: Step, failure: str) -> None:
        info = CheckpointInfo(step, self._term)
        if failure:
            self._event("checkpoint_failed", checkpoint_step=step, detail=failure)
        else:
            self._checkpoint = info
            self._event("checkpoint_committed", checkpoint_step=step, uri=f"{self._run.uri}/{info.key}")
            self._saver.retain()
        self._broadcast({"kind": "checkpoint", "step": step})
        self._decide(m.SaveDecided(step, failure))
        self._status_due = 0.0

    def _event(self, kind: str, **facts: object) -> None:
        self._recorder.event(kind, step=self._progress.step, generation=self._group.generation, **facts)

    def _member_facts(self) -> list[JsonObject]:
        return [
            {"id": worker, "rank": member.rank, "node": facts.get("node"), "pid": facts.get("pid")}
            for worker, member in sorted(self._group.members.items(), key=lambda item: item[1].rank)
            for facts in (self._facts.get(worker, {}),)
        ]

    def _state(self, state: JobState, reason: str) -> None:
        self._job_state, self._reason = state, reason
        self._status_due = 0.0

    def _status(self) -> RunStatus:
        config, before, progress = self._spec.config, self._left.status, self._progress
        moment = timestamp(self._clock.now())
        training = self._group.phase is m.Phase.TRAINING or self._end is not None
        epoch = progress.step * config.trainer.global_batch_size / self._data_size if self._data_size else 0.0
        self._status_sequence += 1
        return RunStatus(
            run_id=self._run.run_id,
            name=self._spec.name,
            state=self._job_state,
            reason=self._reason,
            step=progress.step,
            total_steps=self._total_steps if self._total_steps is not None else (before.total_steps if before else None),
            epoch=round(epoch, 3),
            term=self._term,
            generation=self._group.generation,
            world_size=len(self._group.members) if training and self._group.generation else 0,
            workers=self._desired.workers,
            members=tuple(self._member_facts()) if self._group.generation else (),
            steps_lost=self._steps_lost,
            samples_repeated=self._steps_lost * config.trainer.global_batch_size,
            train_loss=progress.train_loss,
            metrics=progress.metrics,
            samples_per_s=progress.samples_per_s,
            goodput=progress.goodput(self._spec.submitted_at, self._clock.now()),
            checkpoint=CheckpointRef(step=self._checkpoint.step, uri=f"{self._run.uri}/{self._checkpoint.key}")
            if self._checkpoint
            else None,
            device=self._device,
            dashboard=self._dashboard,
            submitted_at=self._spec.submitted_at,
            started_at=before.started_at if before and before.started_at else self._spec.submitted_at,
            ended_at=moment if self._job_state.terminal else None,
            updated_at=moment,
            sequence=self._status_sequence,
            exit_code=int(self._end.exit_code) if self._end is not None and self._job_state.terminal else None,
        )

    def _write_status(self) -> None:
        self._status_due = self._clock.monotonic() + STATUS_INTERVAL_S
        status, term = self._status(), self._term
        self._writer.submit(lambda: self._run.put_status(term, status.to_json()))
        RayMetrics.show(status)

    # the end

    def _close(self) -> int:
        """Let the workers go, then write the final state: what it says holds from then on."""
        assert self._end is not None
        end = self._end
        self._commit()
        if self._serving:
            self._workers.end()
            self._tail.finish()
            while not self._inbox.empty():
                self._inbox.get()()
        self._watcher.stop()
        self._job_state, self._reason = end.state, end.reason
        self._recorder.flush(ledger=True)
        self._event("ended", state=end.state.value, reason=end.reason.partition("\n")[0], exit_code=int(end.exit_code))
        self._recorder.flush(ledger=True)
        self._write_status()
        written = self._drain_writer()
        if self._serving:
            self._link.stop()
        if self._tracker is not None:
            self._tracker.finish(int(end.exit_code))
        if self._serving and written:
            self._saver.finish_deletion(LEASE_S)
        if not written:
            print(f"the final state could not be written: {end.state}. {end.reason}", flush=True)
        return 0

    def _drain_writer(self) -> bool:
        done = threading.Event()
        self._writer.submit(done.set)
        return done.wait(150.0) and self._failure is None


def _named(prefix: str, metrics: dict[str, float]) -> JsonObject:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _address_towards(address: str) -> str:
    """This machine's address as the Ray at host:port sees it."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def main(arguments: Sequence[str]) -> int:
    runs, run_id, state = arguments
    controller = Controller(RunStore(open_store(runs), RunId(run_id)), Path(state), clock=SystemClock())

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        return controller.serve() if controller.take_office() else 0
    except Fenced:
        return FENCED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
