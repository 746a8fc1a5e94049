"""The Ray actor around a worker. Runs in the worker process; the one place in it that knows Ray."""

from __future__ import annotations

import ray

from launcher.core.types import JsonObject
from launcher.jobspec.job import JobSpec
from launcher.runtime.pod.prestop import say_here
from launcher.runtime.worker.termination_notices import TerminationNotices
from launcher.runtime.worker.worker import Worker


class WorkerActor:
    """The part of a worker that Ray knows; Ray wraps every method of an actor's class, so the worker itself is none."""

    def __init__(self, spec: JsonObject, runs: str, worker: str, code_folder: str, joins: bool) -> None:
        self._worker = Worker(spec, runs, worker, code_folder, joins=joins)
        elastic = JobSpec.from_json(spec).config.elastic
        notices = TerminationNotices(self._worker.noticed, drain_s=elastic.drain_s, notice_file=elastic.notice_file)
        notices.install()
        self._worker.on_release = notices.released
        context = ray.get_runtime_context()
        self._node_id, self._node_ip = context.get_node_id(), ray.util.get_node_ip_address()
        say_here(self._node_id, context.gcs_address)

    def attach(self, term: int, host: str, port: int, secret: str, environment: dict[str, str]) -> JsonObject:
        description = self._worker.attach(term, host, port, secret, environment)
        return {**description, **self._place()} if description else {}

    def describe(self) -> JsonObject:
        return {**self._worker.describe(), **self._place()}

    def _place(self) -> JsonObject:
        return {"node_id": self._node_id, "node_ip": self._node_ip}
