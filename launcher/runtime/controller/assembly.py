"""Puts a controller together from what it is given: the same for a real run and for a simulated one. Runs in the controller process."""

from __future__ import annotations

from launcher.core.clock import Clock
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore
from launcher.runtime.cluster.pod_bounds import PodBounds
from launcher.runtime.cluster.worker_group import WorkerGroup
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter
from launcher.runtime.controller.controller import Controller
from launcher.runtime.controller.deaths import Deaths
from launcher.runtime.controller.dispatcher import Dispatcher
from launcher.runtime.controller.executor import Executor
from launcher.runtime.controller.inbox import Inbox
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.takeover import Takeover
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.health import Health, Patience
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.records.store_writer import StoreWriter
from launcher.runtime.transport.rendezvous import Rendezvous
from launcher.runtime.transport.server import MessageServer


def assemble(
    run: RunStore,
    spec: JobSpec,
    leadership: Leadership,
    *,
    inbox: Inbox,
    writer: StoreWriter,
    recorder: RunRecorder,
    status: StatusWriter,
    workers: WorkerGroup,
    server: MessageServer,
    contact: tuple[str, int, str],
    output: WorkerOutput,
    pods: PodBounds | None,
    clock: Clock,
    timing: Timing,
    holder: str,
) -> tuple[Controller, CheckpointCommitter]:
    """`contact`: host and port of the server, and its secret in hexadecimal; `holder`: of the terms that are claimed, for people."""
    elastic = spec.config.elastic
    registry, rendezvous, deaths = WorkerRegistry(), Rendezvous(), Deaths()
    health = Health(Patience(silence_s=elastic.silence_s, hang_s=elastic.hang_s))
    tracker = ResizeTracker(recorder, status, clock)
    committer = CheckpointCommitter(run, leadership.term, writer, recorder, spec, inbox, clock, timing)
    lifecycle = WorkerLifecycle(leadership, spec, registry, health, recorder, status, tracker, committer, clock)
    reconciler = Reconciler(leadership, spec, registry, lifecycle, tracker, recorder, status, clock, timing, gpu=workers.gpu)
    takeover = Takeover(
        run, spec, leadership, registry, health, lifecycle, committer, recorder, status, output, clock, timing, holder=holder
    )
    executor = Executor(
        leadership,
        spec,
        workers,
        server,
        contact,
        registry,
        health,
        lifecycle,
        reconciler,
        takeover,
        tracker,
        committer,
        rendezvous,
        recorder,
        status,
        inbox,
        clock,
        timing,
    )
    dispatcher = Dispatcher(
        run,
        spec,
        leadership,
        server,
        registry,
        health,
        lifecycle,
        reconciler,
        tracker,
        committer,
        rendezvous,
        recorder,
        status,
        output,
        deaths,
        clock,
    )
    controller = Controller(
        leadership,
        inbox,
        takeover,
        dispatcher,
        lifecycle,
        reconciler,
        executor,
        tracker,
        registry,
        committer,
        recorder,
        status,
        deaths,
        clock,
        timing,
        pods,
    )
    return controller, committer
