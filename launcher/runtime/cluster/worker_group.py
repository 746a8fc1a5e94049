"""The workers as Ray's detached actors, in the run's own namespace: start, find again, attach, end. Runs in the controller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import ray
from ray.util import list_named_actors

from launcher.core.errors import BackendUnavailable
from launcher.core.types import RunId, Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.runtime.cluster.log_channel import Subscriber
from launcher.runtime.protocol.messages import WorkerDescription
from launcher.runtime.worker.actor import WorkerActor

RAY_PATIENCE_S = 180.0
EXPLAIN_S = 5.0
"""So long a worker whose connection broke is left to Ray, to say of what it died."""
ERROR_LENGTH = 400
"""Characters of Ray's account of a death."""


@dataclass(frozen=True)
class RayPlace:
    address: str
    dashboard: str


@dataclass(frozen=True)
class Invitation:
    """Whom a worker is to report to."""

    term: Term
    host: str
    port: int
    secret: str
    """In hexadecimal."""


@dataclass(frozen=True)
class Attached:
    worker: WorkerId
    description: WorkerDescription


@dataclass(frozen=True)
class AttachRefused:
    """The worker reports to a later term."""

    worker: WorkerId


@dataclass(frozen=True)
class AttachFailed:
    worker: WorkerId
    why: str


def wait_for_ray(ray_file: Path, error_file: Path, *, patience_s: float = RAY_PATIENCE_S) -> RayPlace:
    """Where Ray is, once it is ready. Raises BackendUnavailable when its start failed or takes too long."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, msgspec.DecodeError):  # not there yet, or in part
            return msgspec.json.decode(ray_file.read_bytes(), type=RayPlace)
        if error_file.exists():
            raise BackendUnavailable(
                f"the local Ray did not start: {error_file.read_text().strip()[-600:]}",
                where=str(error_file.with_name("keeper.log")),
                next="mend what it says, then `launch resume RUN`",
            )
        time.sleep(0.05)
    raise BackendUnavailable(f"the local Ray was not ready within {patience_s:g} s", where=str(error_file.with_name("keeper.log")))


@dataclass
class WorkerGroup:
    spec: JobSpec
    runs: str
    run_id: RunId
    code_folder: Path
    resource: str | None = None
    """Of which each worker takes one, where Ray has a place for it."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that workers are given by call."""
    gpu: int = 0
    """GPUs of one worker."""
    ray_address: str = ""
    """host:port of the Ray that it is connected to."""
    actors: dict[WorkerId, Any] = field(default_factory=dict)
    """Ray's handles."""
    next_number: int = 0
    _asked: dict[WorkerId, Future[WorkerDescription]] = field(default_factory=dict)
    """Ray's answers to why they died, while they have not been ended."""
    _dying: dict[WorkerId, Any] = field(default_factory=dict)
    """Handles of those that are ended when Ray has answered."""

    def connect(self, place: RayPlace) -> None:
        """Become a driver of Ray, in the run's namespace. Raises BackendUnavailable."""
        try:
            ray.init(address=place.address, namespace=self.run_id, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            raise BackendUnavailable(f"Ray does not answer: {error}", given=place.address) from error
        self.ray_address = ray.get_runtime_context().gcs_address
        self.gpu = self.spec.config.gpus_of_worker(int(ray.cluster_resources().get("GPU", 0)))

    def log_channel(self) -> Subscriber:
        """The lines of all nodes' processes, to be polled; a subscription is of one thread."""
        subscriber = ray._raylet.GcsLogSubscriber(address=self.ray_address)
        subscriber.subscribe()
        return cast(Subscriber, subscriber)

    def find(self) -> list[WorkerId]:
        """Workers of this run that live from an earlier term."""
        for name in list_named_actors():
            # A name stays taken until Ray has seen its actor's death, so numbers are not given twice.
            self.next_number = max(self.next_number, int(str(name)[1:]) + 1)
            with suppress(ValueError):  # it died since it was listed
                self.actors[WorkerId(str(name))] = ray.get_actor(str(name))
        return sorted(self.actors)

    def start(self, count: int, *, joins: bool) -> list[WorkerId]:
        """`count` new workers, to join a group at work or to begin one. CPU workers reserve no CPU, so that a laptop holds any number."""
        remote = ray.remote(WorkerActor)
        started = []
        for number in range(self.next_number, self.next_number + count):
            worker = WorkerId(f"w{number}")
            options = {
                "name": worker,
                "lifetime": "detached",
                "num_cpus": 0,
                "num_gpus": self.gpu,
                "resources": {self.resource: 1} if self.resource is not None else {},
                "max_concurrency": 4,
                "max_restarts": 0,
            }
            self.actors[worker] = remote.options(**options).remote(
                self.spec.to_json(), self.runs, worker, str(self.code_folder), self.gpu, joins
            )
            started.append(worker)
        self.next_number += count
        return started

    def attach(self, worker: WorkerId, invitation: Invitation, done: Callable[[Attached | AttachRefused | AttachFailed], None]) -> None:
        """Tell a worker whom to report to; `done` is called once, on another thread."""
        contact = (invitation.term, invitation.host, invitation.port, invitation.secret)
        future: Future[WorkerDescription | None] = self.actors[worker].attach.remote(*contact, self.variables).future()

        def answered(result: Future[WorkerDescription | None]) -> None:
            if (error := result.exception()) is not None:
                done(AttachFailed(worker, death_of(error)))
            elif (description := result.result()) is None:
                done(AttachRefused(worker))
            else:
                done(Attached(worker, description))

        future.add_done_callback(answered)

    def why_dead(self, worker: WorkerId, done: Callable[[WorkerId, str], None]) -> None:
        """Ask Ray what became of a worker whose connection broke; `done` is called once, on another thread, with "" for one that lives."""
        future: Future[WorkerDescription] = self.actors[worker].describe.remote().future()
        self._asked[worker] = future
        future.add_done_callback(lambda result: done(worker, death_of(result.exception())))

    def end(self, workers: list[WorkerId] | None = None) -> None:
        """Kill these; None: all. One of which Ray was asked why it died is killed when Ray has answered, or after EXPLAIN_S.

        What is killed at once was killed by us, to Ray, also where it had died before.
        """
        for worker in workers if workers is not None else [*self.actors, *self._dying]:
            actor = self.actors.pop(worker, None)
            asked = self._asked.pop(worker, None)
            if actor is not None and asked is not None and workers is not None:
                self._dying[worker] = actor
                threading.Thread(target=self._kill_later, args=(worker, asked), name=f"end-{worker}", daemon=True).start()
            elif (actor := actor or self._dying.pop(worker, None)) is not None:
                ray.kill(actor)

    def _kill_later(self, worker: WorkerId, asked: Future[WorkerDescription]) -> None:
        wait([asked], timeout=EXPLAIN_S)
        if (actor := self._dying.pop(worker, None)) is not None:
            ray.kill(actor)


def death_of(error: BaseException | None) -> str:
    """Ray's account of a death in one line; "" for none."""
    if error is None:
        return ""
    text = str(error)
    for line in text.splitlines():
        if "exit detail" in line.lower() or "cause" in line.lower():
            return line.strip()[:ERROR_LENGTH]
    return text.strip().splitlines()[0][:ERROR_LENGTH] if text.strip() else type(error).__name__
