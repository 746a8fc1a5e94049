"""One rank: a process that builds the job's Trainer, forms the generations it is told to, and reports.

Three kinds of threads: the main one trains and is the only one that touches torch's state; the link's two carry messages
and the heartbeat, whatever the main one does; Ray's answer `attach` and `describe`.

Without a controller it goes on to the next checkpoint boundary and waits there for a new one to attach; when nothing has
moved for ORPHAN_LIMIT_S it ends itself.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from launcher.core.clock import SystemClock, timestamp
from launcher.core.errors import CheckpointCorrupt, LauncherError
from launcher.core.exit_codes import ExitCode
from launcher.core.run_store import RunStore
from launcher.core.store import open_store
from launcher.core.types import JsonObject, RunId, WorkerId
from launcher.runtime.link import LinkClient
from launcher.runtime.link_store import LinkStore
from launcher.spec.code import unpack
from launcher.spec.job import JobSpec
from launcher.tracking.metrics import MetricWindow

if TYPE_CHECKING:
    from launcher.checkpoint.manifest import CheckpointPart
    from launcher.training.collective import Collective
    from launcher.training.step import Wishes
    from launcher.training.trainer import StepRecord, Trainer

ORPHAN_LIMIT_S = 60.0
COLLECTIVE_TIMEOUT_S = 1800.0
"""A last resort: who is gone or frozen is noticed by the controller, which orders the others to leave."""


class Worker:
    """What the actor (worker_group.WorkerActor) holds."""

    def __init__(self, spec: JsonObject, runs: str, worker: str, code_folder: str) -> None:
        self._id = WorkerId(worker)
        self._spec = JobSpec.from_json(spec)
        self._runs = runs
        self._code_folder = self._code = Path(code_folder)
        self._lock = threading.RLock()
        self._link: LinkClient | None = None
        self._term = 0
        self._outbox: list[JsonObject] = []
        """Messages that a controller has to hear, also the next one: kept until it says that they are durable."""
        self._commands: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()
        self._phase = "building"
        self._applied = 0
        self._generation = 0
        self._rank = 0
        self._world_size = 0
        self._stop = threading.Event()
        self._admitted = threading.Event()
        self._connected = threading.Event()
        self._built: JsonObject = {}
        """What is known of the job once it is built: device, total_steps, data_size."""
        self._trainer: Trainer | None = None
        self._collective: Collective | None = None
        self._store: LinkStore | None = None
        self._window = MetricWindow(self._spec.config.trainer.log_every_steps, self._spec.config.trainer.global_batch_size)
        threading.Thread(target=self._main, name="training", daemon=True).start()
        threading.Thread(target=self._end_when_orphaned, name="orphan", daemon=True).start()

    # called through Ray; both return at once

    def attach(self, term: int, host: str, port: int, secret: str, environment: dict[str, str]) -> JsonObject:
        """Report to the controller of this term from now on; a lower term than the present one is refused (empty answer).

        `environment`: the variables that open the run store. They come by call, because whoever started Ray may have had
        others, and because what is given to Ray as an actor's environment is shown in its dashboard.
        """
        with self._lock:
            if term <= self._term:
                return {}
            self._term = term
            if self._link is not None:
                self._link.close()
            self._link = LinkClient(
                (host, port), bytes.fromhex(secret), self._id, heard=self._heard, beat=self._beat, lost=lambda: self._disconnected(term)
            )
            self._connected.set()
            for message in self._outbox:
                self._link.send(message)
            if self._store is not None:
                self._store.repeat()
            os.environ.update(environment)
            self._admitted.set()
        return self.describe()

    def describe(self) -> JsonObject:
        return {
            "worker": self._id,
            "pid": os.getpid(),
            "node": socket.gethostname(),
            "phase": self._phase,
            "spec": self._spec.number,
            "generation": self._generation,
            "rank": self._rank,
            "world_size": self._world_size,
            "applied": self._applied,
            **self._built,
            "stdout": _path_of(1),
            "stderr": _path_of(2),
        }

    # the link's threads

    def _heard(self, message: JsonObject) -> None:
        match message["kind"]:
            case "stop":
                self._stop.set()
            case "leave":
                if self._collective is not None:
                    self._collective.leave()
            case "durable":
                self._forget(lambda kept: kept["kind"] in ("row", "evaluated") and _number(kept, "step") <= _number(message, "step"))
            case "checkpoint":
                self._forget(lambda kept: kept["kind"] in ("saved", "save_failed") and _number(kept, "step") <= _number(message, "step"))
            case "value":
                if self._store is not None:
                    self._store.answered(message)
            case _:
                self._commands.put(message)

    def _beat(self) -> JsonObject:
        progress = self._trainer.progress if self._trainer is not None else 0
        return {"kind": "beat", "applied": self._applied, "progress": progress, "generation": self._generation}

    def _disconnected(self, term: int) -> None:
        with self._lock:
            if self._term == term:
                self._connected.clear()

    def _send(self, message: JsonObject, *, keep: bool = False) -> None:
        with self._lock:
            if keep:
                self._outbox.append(message)
            if self._link is not None:
                self._link.send(message)

    def _forget(self, done: Callable[[JsonObject], bool]) -> None:
        with self._lock:
            self._outbox = [message for message in self._outbox if not done(message)]

    def _end_when_orphaned(self) -> None:
        last, since = (-1, -1), time.monotonic()
        while True:
            time.sleep(1.0)
            now = (self._trainer.progress if self._trainer is not None else 0, int(self._connected.is_set()))
            if now != last or self._connected.is_set():
                last, since = now, time.monotonic()
            elif time.monotonic() - since > ORPHAN_LIMIT_S:
                os._exit(1)

    # the main thread

    def _main(self) -> None:
        try:
            self._build()
            while True:
                self._obey(self._commands.get())
        except LauncherError as error:
            self._fail(str(error), error.exit_code)
        except BaseException as error:  # noqa: BLE001 - whatever a user's code raises ends the job with their traceback
            self._fail(self._user_error(error), ExitCode.JOB_FAILED)

    def _build(self) -> None:
        started = time.monotonic()
        from launcher.training.device import choose_device
        from launcher.training.trainer import Trainer

        imported = time.monotonic()
        self._admitted.wait()
        self._run = RunStore(open_store(self._runs), RunId(self._spec.run_id))
        code = unpack(self._run.store.get(self._run.key(f"code/{self._spec.code.digest}.zip")), self._spec.code.digest, self._code_folder)
        self._code = code
        sys.path.insert(0, str(code))
        os.chdir(code)
        config = self._spec.config
        device = choose_device(config)
        threads = config.threads(os.cpu_count() or 1)
        trainer = Trainer(config, self._run, Reporter(self), device=device, threads=threads)
        trainer.build()
        warm = trainer.warm_up()
        self._trainer = trainer
        self._built = {"device": device, "total_steps": trainer.total_steps, "data_size": trainer.data_size}
        self._phase = "ready"
        self._send(
            {
                "kind": "ready",
                **self._built,
                "threads": threads,
                "fused": warm.fused,
                "fuse_reason": warm.reason,
                "import_s": round(imported - started, 3),
                "build_s": round(time.monotonic() - imported, 3),
            },
            keep=True,
        )

    def _obey(self, command: JsonObject) -> None:
        assert self._trainer is not None
        match command["kind"]:
            case "load":
                self._load(command)
            case "form":
                self._train(command)

    def _load(self, command: Any) -> None:
        from launcher.checkpoint.catalog import CheckpointInfo, read_manifest

        assert self._trainer is not None
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
            self._send({"kind": "corrupt", "detail": str(error)})
            return
        self._applied = self._trainer.step
        self._send({"kind": "loaded", "step": self._applied})

    def _train(self, command: Any) -> None:
        from launcher.training.collective import Collective, CollectiveBroken

        assert self._trainer is not None
        trainer = self._trainer
        self._generation, self._rank, self._world_size = command["generation"], command["rank"], command["world_size"]
        self._phase = "training"
        self._forget(lambda kept: kept["kind"] == "ready")
        self._store = LinkStore(self._generation, self._send)
        try:
            self._collective = Collective(
                generation=self._generation,
                rank=self._rank,
                world_size=self._world_size,
                device=str(self._built["device"]),
                timeout_s=COLLECTIVE_TIMEOUT_S,
            )
            self._collective.connect(self._store)
            outcome = trainer.run(self._collective)
        except CollectiveBroken as error:
            self._phase = "broken"
            self._send({"kind": "broken", "detail": str(error), "applied": self._applied}, keep=True)
            return
        self._close_window()
        self._phase = "done"
        self._send({"kind": "outcome", "outcome": outcome.value, "applied": self._applied}, keep=True)

    def _close_window(self) -> None:
        row = self._window.flush()
        if row is not None:
            self._send_row({**row, "time": timestamp(SystemClock().now())})

    def _send_row(self, row: JsonObject) -> None:
        if self._rank == 0:
            self._send({"kind": "row", **row}, keep=True)

    def _fail(self, reason: str, code: ExitCode) -> None:
        self._phase = "failed"
        self._send({"kind": "error", "reason": reason, "exit_code": int(code), "step": self._applied}, keep=True)

    def _user_error(self, error: BaseException) -> str:
        where = f"rank {self._rank}, after step {self._applied}" if self._generation else "while the job was built"
        return f"{type(error).__name__} in the job's code ({where})\n{user_traceback(error, self._code)}"


class Reporter:
    """What the Trainer tells and asks; called on the main thread, `saved` also on the one that uploads."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._every = worker._spec.config.checkpoint.every_steps
        self._log_every = worker._spec.config.trainer.log_every_steps
        self._clock = SystemClock()
        self._first = True

    def applied(self, record: StepRecord) -> None:
        worker = self._worker
        boundary = self._every is not None and record.step % self._every == 0
        moment = timestamp(self._clock.now()) if boundary or record.step % self._log_every == 0 else ""
        row = worker._window.add(
            record.step, loss=record.loss, metrics=record.metrics, seconds=record.seconds, time=moment, grad_norm=record.grad_norm
        )
        if row is None and boundary:
            row = worker._window.flush()
        worker._applied = record.step
        if row is not None:
            worker._send_row(row)
        if self._first:
            self._first = False
            worker._send({**worker._beat(), "kind": "first", "time": timestamp(self._clock.now())})

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        if self._worker._rank == 0:
            self._worker._send(
                {"kind": "evaluated", "step": step, "metrics": {name: finite(value) for name, value in metrics.items()}}, keep=True
            )

    def saved(self, part: CheckpointPart) -> None:
        self._worker._send({"kind": "saved", "step": part.step, "part": part.to_json()}, keep=True)

    def save_failed(self, step: int, error: Exception) -> None:
        self._worker._send({"kind": "save_failed", "step": step, "detail": str(error)}, keep=True)

    def wishes(self) -> Wishes:
        from launcher.training.step import Wishes

        worker = self._worker
        if not worker._connected.is_set() and self._every is not None and worker._applied % self._every == 0:
            worker._connected.wait(ORPHAN_LIMIT_S + 5.0)
        return Wishes(stop=worker._stop.is_set())


def finite(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None


def user_traceback(error: BaseException, code: Path) -> str:
    """The traceback from where it enters the user's code, with paths as the user knows them; else from where it leaves ours."""
    entry = _first(error.__traceback__, lambda path: path.startswith(str(code)))
    if entry is None:
        ours = str(Path(__file__).resolve().parents[1])
        entry = _first(error.__traceback__, lambda path: not path.startswith(ours))
    text = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
    return text.replace(f"{code}{os.sep}", "").rstrip()


def _first(entry: TracebackType | None, wanted: Callable[[str], bool]) -> TracebackType | None:
    while entry is not None and not wanted(entry.tb_frame.f_code.co_filename):
        entry = entry.tb_next
    return entry


def _number(message: JsonObject, key: str) -> int:
    value = message[key]
    assert isinstance(value, int)
    return value


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
