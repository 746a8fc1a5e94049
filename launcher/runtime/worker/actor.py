"""The Ray actor around a worker. Runs in the worker, and is the one place there that knows Ray."""

from __future__ import annotations

from pathlib import Path

import msgspec
import ray

from launcher.core import log
from launcher.core.process import set_variables
from launcher.core.types import JsonObject, Term, WorkerId
from launcher.jobspec.environment import recorded
from launcher.jobspec.job import JobSpec
from launcher.runtime.pod.prestop import say_here
from launcher.runtime.protocol.messages import WorkerDescription
from launcher.runtime.worker import exit_watcher
from launcher.runtime.worker.controller_connection import Contact
from launcher.runtime.worker.process import WorkerProcess
from launcher.runtime.worker.termination_notices import TerminationNotices


class WorkerActor:
    """The part of a worker that Ray knows; Ray wraps every method of an actor's class, so the worker itself is none."""

    def __init__(self, spec: JsonObject, runs: str, worker: str, code_folder: str, gpus: int, joins: bool) -> None:
        """`gpus`: as many as Ray was asked for."""
        job = JobSpec.from_json(spec)
        set_variables(recorded(job.config))  # before torch is imported, which reads some of them once
        log.setup("worker", run=job.run_id)
        log.bind(worker=worker)
        try:
            exit_watcher.start()
        except OSError as error:
            log.warning(f"how this process ends will not be told: its watcher could not be started: {error}")
        self._worker = WorkerProcess(job, runs, WorkerId(worker), Path(code_folder), gpus=gpus, joins=joins)
        elastic = job.config.elastic
        notices = TerminationNotices(self._worker.noticed, drain_s=elastic.drain_s, notice_file=elastic.notice_file)
        notices.install()
        context = ray.get_runtime_context()
        self._node_id, self._node_ip = context.get_node_id(), ray.util.get_node_ip_address()
        say_here(self._node_id, context.gcs_address)
        self._worker.start(notices.released)

    def attach(self, term: int, host: str, port: int, secret: str, variables: dict[str, str]) -> WorkerDescription | None:
        description = self._worker.attach(Term(term), Contact((host, port), bytes.fromhex(secret)), variables)
        return self._placed(description) if description is not None else None

    def describe(self) -> WorkerDescription:
        return self._placed(self._worker.describe())

    def _placed(self, description: WorkerDescription) -> WorkerDescription:
        return msgspec.structs.replace(description, node_id=self._node_id, node_ip=self._node_ip)
