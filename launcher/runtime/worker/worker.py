"""One worker: a process that builds the job's Trainer, goes into the generations that it is called into, and reports.

The main thread trains and is the only one that touches torch's state. The link's two carry messages and the heartbeat, whatever
the main one does; Ray's answer `attach`; others connect to the next generation's ranks, close old groups and look for orphanhood.
What to do with a message is decided by participant.py, under one lock.

Without a controller it goes on to the next checkpoint boundary and waits there for a new one to attach; when nothing has
moved for ORPHAN_LIMIT_S it ends itself.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.core.clock import SystemClock, timestamp
from launcher.core.errors import CheckpointCorrupt, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.types import Generation, JsonObject, RunId, Step, Term, WorkerId
from launcher.jobspec.code import unpack
from launcher.jobspec.job import JobSpec
from launcher.jobspec.packages import requirements_key
from launcher.record.run_store import RunStore
from launcher.runtime.protocol import participant as p
from launcher.runtime.protocol.coordinator import Outcome
from launcher.runtime.transport.rendezvous import RendezvousStore
from launcher.runtime.transport.server import MessageClient, was_given_up
from launcher.runtime.worker.packages import provide
from launcher.runtime.worker.reporter import Reporter, user_traceback
from launcher.runtime.worker.step_history import StepHistory
from launcher.runtime.worker.termination_notices import TerminationNotice

if TYPE_CHECKING:
    from launcher.training.comm.collective import Collective
    from launcher.training.trainer import Trainer

ORPHAN_LIMIT_S = 60.0
COLLECTIVE_TIMEOUT_S = 1800.0
"""A last resort: who is gone or frozen is noticed by the controller, which orders the others to leave."""


@dataclass
class Group:
    """The process group of one generation, being formed or formed."""

    collective: Collective
    store: RendezvousStore
    connect_s: float | None = None


class Worker:
    """What the actor (worker_group.WorkerActor) holds."""

    def __init__(self, spec: JsonObject, runs: str, worker: str, code_folder: str, *, joins: bool) -> None:
        """`joins`: others are at work already and wait for this one's state to arrive."""
        self._joins = joins
        self._id = WorkerId(worker)
        self._spec = JobSpec.from_json(spec)
        self._runs = runs
        self._code_folder = self._code = Path(code_folder)
        config = self._spec.config
        self._changed = threading.Condition(threading.RLock())
        """Guards what follows; the main thread waits on it for orders."""
        self._me = p.Participant()
        self._groups: dict[Generation, Group] = {}
        self._load_order: JsonObject | None = None
        self._loading: JsonObject | None = None
        """The order that is, or was last, carried out."""
        self._loaded: JsonObject | None = None
        """What came of it."""
        self._finish = False
        self._link: MessageClient | None = None
        self._controller: tuple[tuple[str, int], bytes] | None = None
        self._term = self._born = 0
        """Of the controller it reports to, and of the first one."""
        self._attempts = self._attachment = 0
        """To attach: how many there were, and the one whose link is in use."""
        self._outbox: list[JsonObject] = []
        """Messages that a controller has to hear, also the next one: kept until it says that they are durable."""
        self.generation = 0
        self._phase = "building"
        self._timings: JsonObject = {}
        self._collective: Collective | None = None
        self._retired: list[Collective] = []
        """Of earlier generations: other ranks may still be inside until the next one has done a step."""
        self._stop = threading.Event()
        self._admitted = threading.Event()
        self._connected = threading.Event()
        self._built: JsonObject = {}
        """What is known of the job once it is built: device, total_steps, data_size."""
        self._trainer: Trainer | None = None
        self.records = StepHistory(config.trainer.log_every_steps, config.trainer.global_batch_size, config.checkpoint.every_steps)
        self._reporter = Reporter(self, config.checkpoint.every_steps)
        self.on_release: Callable[[], None] = lambda: None
        """Called when this worker's part is done."""
        threading.Thread(target=self._main, name="training", daemon=True).start()
        threading.Thread(target=self._end_when_orphaned, name="orphan", daemon=True).start()

    # called through Ray; both return at once

    def attach(self, term: int, host: str, port: int, secret: str, environment: dict[str, str]) -> JsonObject:
        """Report to the controller of this term from now on; a lower term than the present one is refused (empty answer).

        `environment`: the variables that open the run store. They come by call, because whoever started Ray may have had
        others, and because what is given to Ray as an actor's environment is shown in its dashboard.
        """
        with self._changed:
            if term <= self._term:
                return {}
            self._attempts += 1
            attachment = self._attempts
        controller = ((host, port), bytes.fromhex(secret))
        # Without the lock: connecting may take long, and what is said meanwhile goes to the old controller.
        link = MessageClient(
            *controller,
            self._id,
            heard=lambda message: self._heard(attachment, message),
            beat=self._beat,
            lost=lambda: self._disconnected(attachment),
        )
        with self._changed:
            if term <= self._term:
                link.close()
                return {}
            self._term, self._born = term, self._born or term
            old, self._link, self._attachment, self._controller = self._link, link, attachment, controller
            self._connected.set()
            for message in self._outbox:
                link.send(_aged(message))
            for group in self._groups.values():
                group.store.repeat()
            os.environ.update(environment)
            self._admitted.set()
            if old is not None:
                old.close()
            return self.describe()

    def describe(self) -> JsonObject:
        found = asdict(self._me.found(self._id, ready=self._ready, born=Term(self._born)))
        return {
            **found,
            "outcome": self._me.outcome.value if self._me.outcome is not None else None,
            "undecided": [[kept["step"], kept["generation"]] for kept in self._outbox if kept["kind"] == "saved"],
            "pid": os.getpid(),
            "node": socket.gethostname(),
            "phase": self._phase,
            "released": self._me.released,
            "spec": self._spec.number,
            **self._built,
            "stdout": _path_of(1),
            "stderr": _path_of(2),
        }

    @property
    def _ready(self) -> bool:
        return self._phase not in ("building", "failed")

    def noticed(self, notice: TerminationNotice) -> None:
        """This process, or its machine, will go away."""
        leave_by = time.monotonic() + notice.deadline_s
        told: JsonObject = {
            "kind": "draining",
            "source": notice.source,
            "leave_by": leave_by,
            "deadline_s": notice.deadline_s,
            "detail": notice.detail,
        }
        self.say(told, keep=True)

    # the link's threads

    def _heard(self, attachment: int, message: Any) -> None:
        with self._changed:
            if attachment != self._attachment:
                return  # of an earlier term's controller
            match message["kind"]:
                case "term":
                    self._term = max(self._term, message["term"])
                case "prepare":
                    seat = p.Assignment(message["generation"], message["rank"], message["world_size"])
                    self._carry_out(self._me.prepare(seat, leave=message["leave"]))
                case "commit":
                    self._carry_out(self._me.commit(_going(message)))
                case "withdraw":
                    self._carry_out(self._me.withdraw(message["generation"]))
                case "leave":
                    self._carry_out(self._me.leave(message["generation"]))
                case "release":
                    self._carry_out(self._me.release())
                case "load":
                    self._ordered_to_load(message)
                case "stop":
                    self._stop.set()
                case "durable":
                    self.records.forget(message["step"])
                case "checkpoint":
                    self._forget_save(message["step"], message["generation"])
                case "records":
                    self._say_records()
                case "value":
                    if (group := self._groups.get(message["generation"])) is not None:
                        group.store.answered(message)
                case "evicted":
                    os._exit(1)

    def _ordered_to_load(self, order: JsonObject) -> None:
        if order != self._loading:
            self._load_order = order
            self._changed.notify_all()
        elif self._loaded is not None:
            self.say(self._loaded)

    def _carry_out(self, actions: Sequence[p.Action]) -> None:
        """With the lock held."""
        for action in actions:
            match action:
                case p.Connect(seat):
                    threading.Thread(target=self._connect, args=(seat,), name="connect", daemon=True).start()
                case p.Discard(generation):
                    if (group := self._groups.pop(generation, None)) is not None:
                        group.collective.leave()
                        if group.connect_s is not None:
                            threading.Thread(target=_close, args=([group.collective],), name="close-groups", daemon=True).start()
                case p.CutOff():
                    if self._collective is not None:
                        self._collective.leave()
                case p.SayPrepared(generation):
                    group = self._groups.get(generation)
                    self.say({"kind": "prepared", "generation": generation, "connect_s": group.connect_s if group is not None else None})
                case p.SayRefused(generation, detail):
                    self.say({"kind": "refused", "generation": generation, "detail": detail})
                case p.SayFormed(generation, step):
                    self.say({"kind": "formed", "generation": generation, "step": step, **self._timings})
                case p.SayLeft(generation, applied):
                    self.say({"kind": "left", "generation": generation, "applied": applied})
                case p.SayEnded(generation, outcome):
                    self.say({"kind": "ended", "generation": generation, "outcome": outcome.value, "applied": self._me.applied})
                case p.Finish():
                    self._finish = True
        self._changed.notify_all()

    def _beat(self) -> JsonObject:
        me, trainer, collective = self._me, self._trainer, self._collective
        return {
            "kind": "beat",
            "generation": me.seat.generation,
            "applied": me.applied,
            "outcome": me.outcome.value if me.outcome is not None else None,
            "out": me.out,
            "formed_at": me.formed_at if me.formed else None,
            "ready": self._ready,
            "phase": self._phase,
            "progress": trainer.progress if trainer is not None else 0,
            "waiting": collective is not None and collective.waiting,
            "busy_s": self._reporter.busy_s,
            "step_s": self._reporter.step_s,
        }

    def _disconnected(self, attachment: int) -> None:
        with self._changed:
            if self._attachment == attachment:
                self._connected.clear()

    def say(self, message: JsonObject, *, keep: bool = False) -> None:
        with self._changed:
            if keep:
                self._outbox.append(message)
            if self._link is not None:
                self._link.send(message)

    def say_record(self, message: JsonObject) -> None:
        if self._me.seat.rank == 0:
            self.say(message)

    def _say_records(self) -> None:
        for message in (*self.records.rows, *self.records.evaluations):
            self.say_record(message)

    def _forget_save(self, step: int, generation: int) -> None:
        self._outbox = [
            kept
            for kept in self._outbox
            if kept["kind"] not in ("saved", "save_failed") or (kept["step"], kept["generation"]) != (step, generation)
        ]

    def _end_when_orphaned(self) -> None:
        last, since = (-1, -1), time.monotonic()
        while True:
            time.sleep(1.0)
            now = (self._trainer.progress if self._trainer is not None else 0, int(self._connected.is_set()))
            if self._connected.is_set() or now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > ORPHAN_LIMIT_S:
                os._exit(1)
            if self._was_given_up():
                os._exit(1)

    def _was_given_up(self) -> bool:
        """Asks over a connection of its own, which would take the place of one that `attach` has just made: not while it does."""
        with self._changed:
            controller = None if self._connected.is_set() else self._controller
        if controller is None or not was_given_up(*controller, self._id):
            return False
        with self._changed:
            return self._controller == controller

    # a thread for each group that is being formed

    def _connect(self, seat: p.Assignment) -> None:
        from launcher.training.comm.collective import Collective
        from launcher.training.comm.transport import CollectiveBroken

        assert seat.rank is not None
        collective = Collective(
            generation=seat.generation,
            rank=seat.rank,
            world_size=seat.world_size,
            device=str(self._built["device"]),
            timeout_s=COLLECTIVE_TIMEOUT_S,
        )
        group = Group(collective, RendezvousStore(seat.generation, self.say))
        with self._changed:
            if self._me.pending != seat:
                return
            self._groups[seat.generation] = group
        began = time.monotonic()
        try:
            collective.connect(group.store)
        except CollectiveBroken as error:
            with self._changed:
                self._groups.pop(seat.generation, None)
                self._carry_out(self._me.could_not_connect(seat.generation, str(error)))
            return
        group.connect_s = round(time.monotonic() - began, 4)
        with self._changed:
            self._carry_out(self._me.connected(seat.generation))

    # the main thread

    def _main(self) -> None:
        from launcher.training.state.transfer import StateDamaged

        try:
            self._build()
            while True:
                self._turn()
        except LauncherError as error:
            self._fail(str(error), error.exit_code, recoverable=False)
        except StateDamaged as error:
            self._fail(str(error), ExitCode.JOB_FAILED, recoverable=True)
        except BaseException as error:  # noqa: BLE001 - whatever a user's code raises is reported with their traceback
            self._fail(self._user_error(error), ExitCode.JOB_FAILED, recoverable=True)

    def _build(self) -> None:
        started = time.monotonic()
        from launcher.training.device import choose_device
        from launcher.training.trainer import Trainer

        imported = time.monotonic()
        self._admitted.wait()
        self._run = RunStore(open_store(self._runs), RunId(self._spec.run_id))
        self._provide_packages()
        code = unpack(self._run.store.get(self._run.key(f"code/{self._spec.code.digest}.zip")), self._spec.code.digest, self._code_folder)
        self._code = code
        sys.path.insert(0, str(code))
        os.chdir(code)
        config = self._spec.config
        device = choose_device(config)
        threads = config.threads(os.cpu_count() or 1)
        trainer = Trainer(config, self._run, self._reporter, device=device, threads=threads)
        trainer.build()
        warm = trainer.warm_up()
        if self._joins:
            trainer.prepare_to_receive()
        self._trainer = trainer
        with self._changed:
            self._built = {"device": device, "total_steps": trainer.total_steps, "data_size": trainer.data_size}
            self._phase = "ready"
            self.say(
                {
                    "kind": "ready",
                    **self._built,
                    "threads": threads,
                    "fused": warm.fused,
                    "fuse_reason": warm.reason,
                    "import_s": round(imported - started, 3),
                    "build_s": round(time.monotonic() - imported, 3),
                }
            )

    def _provide_packages(self) -> None:
        """Before the first import of the user's code."""
        digest = self._spec.code.packages
        if digest is not None:
            provide(self._run.store.get(self._run.key(requirements_key(digest))), digest, self._code_folder.with_name("packages"))

    def _turn(self) -> None:
        """Wait for an order, and carry it out."""
        with self._changed:
            while not (self._me.may_enter or self._load_order or self._finish):
                self._changed.wait()
            finish, load = self._finish, self._load_order
            self._load_order = None
            if load is not None:
                self._loading, self._loaded = load, None
        if finish:
            self._end()
        elif load is not None:
            self._load(load)
        else:
            self._take_part()

    def _load(self, command: Any) -> None:
        from launcher.checkpoint.catalog import CheckpointInfo, read_manifest

        assert self._trainer is not None
        self._phase = "loading"
        try:
            if command["init_from"] is not None:
                origin = command["init_from"]
                run = RunStore(open_store(origin["runs"]), RunId(origin["run_id"]))
                self._trainer.initialise(run, read_manifest(run, CheckpointInfo(origin["step"], origin["term"])))
            else:
                self._trainer.restore(read_manifest(self._run, CheckpointInfo(command["step"], command["term"])))
        except CheckpointCorrupt as error:
            if command["init_from"] is not None:
                raise
            with self._changed:
                self._phase = "ready"
                self._loaded = {"kind": "corrupt", "detail": str(error), "step": command["step"]}
                self.say(self._loaded)
            return
        with self._changed:
            self._me.applies(Step(self._trainer.step))
            self._phase = "ready"
            self._loaded = {"kind": "loaded", "step": self._trainer.step}
            self.say(self._loaded)

    def _take_part(self) -> None:
        """One generation, from its state to its outcome."""
        from launcher.training.comm.transport import CollectiveBroken
        from launcher.training.trainer import RunOutcome

        trainer = self._trainer
        assert trainer is not None
        with self._changed:
            if not self._me.may_enter:
                return
            began = time.monotonic()
            going = self._me.enter()
            group = self._groups.pop(going.generation)
            if self._collective is not None:
                self._retired.append(self._collective)
            self._collective, self.generation, self._phase = group.collective, going.generation, "training"
        try:
            self._share(group, going, began)
            ending = trainer.hold(group.collective) if going.hold else trainer.run(group.collective, again=going.again, save=going.save)
        except CollectiveBroken as error:
            with self._changed:
                group.collective.leave()
                self._phase = "waiting"
                self.say({"kind": "broken", "detail": str(error)})
                self._carry_out(self._me.came_out())
            return
        with self._changed:
            self._phase = "waiting"
            if ending is RunOutcome.SWITCHED:
                self._carry_out(self._me.switched())
                return
            row = self.records.cut(timestamp(SystemClock().now()))
            if row is not None:
                self.say_record(row)
            self._carry_out(self._me.ended(Outcome(ending.value)))

    def _share(self, group: Group, going: p.CommittedAssignment, began: float) -> None:
        """Give or take the state; from then on this rank holds the generation's."""
        from launcher.training.state.transfer import StateMove

        trainer, last_step_at = self._trainer, self._reporter.last_step_at
        assert trainer is not None
        holds_own = self._me.applied is not None
        records = trainer.share(group.collective, StateMove(going.donors, going.receivers), self.records.to_json(), holds_own=holds_own)
        now = time.monotonic()
        with self._changed:
            self.records.take(records)
            self.records.cut(timestamp(SystemClock().now()))
            self._timings = {
                "connect_s": group.connect_s,
                "move_s": round(now - began, 4),
                "pause_s": round(now - last_step_at, 4) if last_step_at is not None else None,
            }
            self._carry_out(self._me.holds(Step(trainer.step)))

    def _end(self) -> None:
        """Released: what is being uploaded still counts, then the controller ends this process."""
        assert self._trainer is not None
        self._trainer.finish()
        self._phase = "released"
        self.say({"kind": "released"})
        self.on_release()
        time.sleep(ORPHAN_LIMIT_S)
        os._exit(0)

    def _fail(self, reason: str, code: ExitCode, *, recoverable: bool) -> None:
        with self._changed:
            self._phase = "failed"
            if self._collective is not None:
                self._collective.leave()
            self.say(
                {
                    "kind": "error",
                    "reason": reason,
                    "exit_code": int(code),
                    "step": self._me.applied,
                    "generation": self.generation,
                    "recoverable": recoverable,
                },
                keep=True,
            )

    def _user_error(self, error: BaseException) -> str:
        where = f"rank {self._me.seat.rank}, after step {self._me.applied}" if self.generation else "while the job was built"
        return f"{type(error).__name__} in the job's code ({where})\n{user_traceback(error, self._code)}"

    # what the reporter asks, on the main thread

    def applied(self, step: int, *, first: bool) -> None:
        self._me.applies(Step(step))
        if first:
            self.say({**self._beat(), "kind": "first", "time": timestamp(SystemClock().now())})
            retired, self._retired = self._retired, []
            if retired:
                threading.Thread(target=_close, args=(retired,), name="close-groups", daemon=True).start()

    def doing(self, what: str) -> None:
        self._phase = what

    def switch_wanted(self) -> bool:
        return self._me.switch_wanted

    def stop_wanted(self) -> bool:
        return self._stop.is_set()

    def wait_for_controller(self) -> None:
        if not self._connected.is_set():
            self._connected.wait(ORPHAN_LIMIT_S + 5.0)

    def waited_s(self) -> float:
        return self._collective.waited_s if self._collective is not None else 0.0


def _close(collectives: Sequence[Collective]) -> None:
    for collective in collectives:
        collective.close()


def _going(message: Any) -> p.CommittedAssignment:
    return p.CommittedAssignment(
        message["generation"],
        tuple(message["donors"]),
        tuple(message["receivers"]),
        message["step"],
        message["again"],
        message["hold"],
        message["save"],
    )


def _aged(message: JsonObject) -> JsonObject:
    """A message that is said again: what is left of a deadline in it."""
    leave_by = message.get("leave_by")
    return message if not isinstance(leave_by, float) else {**message, "deadline_s": max(0.0, leave_by - time.monotonic())}


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
