"""`python -m launcher.runtime.controller RUNS RUN_ID STATE`: leads one run; started by the supervisor. Runs in the controller process.

Arguments and signals, and which parts a real run's controller is made of; controller.py has the loop.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.config.schema import JobConfig
from launcher.core import log
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import BackendUnavailable, ConfigError, LauncherError, StoreDamaged, StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.process import set_variables
from launcher.core.store import open_store
from launcher.core.types import RunId, WorkerId
from launcher.jobspec import environment
from launcher.jobspec.job import JobSpec
from launcher.jobspec.versions import disagreement, installed_versions, record_image
from launcher.record.desired import Desired
from launcher.record.run_store import LEASE_S, RunStore
from launcher.record.status import JobState
from launcher.runtime.cluster.log_channel import LogChannel
from launcher.runtime.cluster.log_tail import LogTail
from launcher.runtime.cluster.node_drains import NodeDrains
from launcher.runtime.cluster.pod_bounds import PodBounds, PodPatches
from launcher.runtime.cluster.worker_group import RayPlace, WorkerGroup, wait_for_ray
from launcher.runtime.controller.assembly import assemble
from launcher.runtime.controller.closing import write_end
from launcher.runtime.controller.inbox import Inbox, LedgerDurable, LinePrinted, NodeDraining, PodBoundsRefused, StoreFailed
from launcher.runtime.controller.leadership import Leadership, LeadershipLost
from launcher.runtime.controller.store_watcher import StoreWatcher
from launcher.runtime.controller.takeover import base_on_checkpoint, claim_leadership, open_term
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.protocol.events import End
from launcher.runtime.records import ray_metrics
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.records.store_writer import StoreWriter
from launcher.runtime.supervisor import FENCED
from launcher.runtime.transport.server import MessageServer

DRAIN_S = 150.0
"""How long the final state may take to be written: longer than the writer's patience with a store that is away."""


@dataclass(frozen=True)
class Given:
    """The command line."""

    run: RunStore
    state_folder: Path
    ray: str | None
    worker_resource: str | None
    pod_group: str | None
    image: str | None


def main(arguments: Sequence[str]) -> int:
    """The process's exit code: 0 when the run has its final state, FENCED when another controller leads it."""
    parser = argparse.ArgumentParser(prog="launcher.runtime.controller")
    parser.add_argument("runs")
    parser.add_argument("run_id")
    parser.add_argument("state", type=Path)
    parser.add_argument("--ray", help="address of a Ray that is there; else the local one, which says in the state folder where it is")
    parser.add_argument("--worker-resource", help="of which each worker takes one, where Ray has a place for it")
    parser.add_argument("--pod-group", help="on Kubernetes: the group of worker pods whose bounds follow those of the run")
    parser.add_argument("--image", help="the reference of the image that this runs in, whose versions are to be recorded")
    words = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    log.setup("controller", run=words.run_id)
    run = RunStore(open_store(words.runs), RunId(words.run_id))
    try:
        return lead(Given(run, words.state, words.ray, words.worker_resource, words.pod_group, words.image), SystemClock())
    except LeadershipLost:
        log.info("a higher term was claimed; this controller ends")
        return FENCED


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def lead(given: Given, clock: Clock) -> int:
    """Claim a term of the run and lead it to its end. Raises LeadershipLost."""
    run, holder = given.run, f"{socket.gethostname()}:{os.getpid()}"
    desired, spec = read_desired(given, clock)
    leadership = claim_leadership(run, desired, holder, clock)
    if leadership is None:
        return 0
    inbox, term, left = Inbox(), leadership.term, leadership.inherited
    writer = StoreWriter(run.store.uri, lambda error: inbox.put(StoreFailed(error)))
    recorder = RunRecorder(
        run,
        spec,
        writer,
        clock,
        term,
        left,
        state_folder=given.state_folder,
        durable=lambda step, of_term: inbox.put(LedgerDurable(step, of_term)),
    )
    status = StatusWriter(run, clock, spec, writer, left, ray_metrics.show)
    workers = WorkerGroup(spec, run.store.uri, run.run_id, given.state_folder / "code", resource=given.worker_resource)
    secret = secrets.token_bytes(32)
    end = refusal(given, spec, leadership, clock)
    if end is None:
        try:
            server, address = connect(given, workers, secret, inbox, status)
        except LauncherError as error:
            end = End(JobState.FAILED, str(error), ExitCode.INFRASTRUCTURE)
    if end is not None:
        end_at_once(end, leadership, run, recorder, status)
        return closed(writer, recorder, end)

    printed = _printed_into(inbox)
    output = WorkerOutput(LogTail(printed), LogChannel(workers.log_channel, printed) if given.ray is not None else None)
    drains = NodeDrains(lambda drain: inbox.put(NodeDraining(drain)))
    pods = _pod_bounds(given, inbox)
    watcher = StoreWatcher(run, leadership, inbox)
    controller, committer = assemble(
        run,
        spec,
        leadership,
        inbox=inbox,
        writer=writer,
        recorder=recorder,
        status=status,
        workers=workers,
        server=server,
        contact=(*address, secret.hex()),
        output=output,
        pods=pods,
        clock=clock,
        timing=Timing(),
        holder=holder,
    )
    watcher.start()
    end = controller.run(workers.find())

    workers.end()
    drains.stop()
    if pods is not None:
        pods.stop()
    output.finish()
    watcher.stop()
    controller.write_end()
    code = closed(writer, recorder, end, server)
    if not writer.failed:
        committer.finish_deletion(LEASE_S)
    return code


def read_desired(given: Given, clock: Clock) -> tuple[Desired, JobSpec]:
    """What people want, and the spec in force. Raises BackendUnavailable where there is none, ConfigError for a spec that cannot be read."""
    run = given.run
    desired = run.desired()
    document = run.spec(desired.spec) if desired is not None else None
    if desired is None or document is None:
        raise BackendUnavailable("the run has no spec", where=run.uri, next="submit it again")
    try:
        return desired, JobSpec.from_json(document)
    except (ConfigError, StoreDamaged) as error:  # what another launcher wrote: then that is what there is to say
        wanted = document.get("versions")
        refused = (
            judge_image(given, {str(name): str(version) for name, version in wanted.items()}, clock) if isinstance(wanted, dict) else None
        )
        raise (refused or error) from error


def judge_image(given: Given, wanted: Mapping[str, str], clock: Clock) -> ConfigError | None:
    """Leave word of what the image has, for those who submit next; the refusal of a job that cannot run in it."""
    if given.image is None:
        return None
    found = installed_versions()
    with suppress(StoreUnavailable):
        record_image(given.run.store, given.image, found, clock)
    return disagreement(given.image, wanted, found)


def refusal(given: Given, spec: JobSpec, leadership: Leadership, clock: Clock) -> End | None:
    """How the run ends where it need not or cannot begin."""
    if leadership.desired.state == "stopped" and leadership.inherited.term is None:
        return End(JobState.STOPPED, "stopped before training began", ExitCode.STOPPED)
    refused = judge_image(given, spec.versions, clock)
    return End(JobState.FAILED, str(refused), ExitCode.INFRASTRUCTURE) if refused is not None else None


def connect(given: Given, workers: WorkerGroup, secret: bytes, inbox: Inbox, status: StatusWriter) -> tuple[MessageServer, tuple[str, int]]:
    """Become a driver of Ray, and listen for workers; the server, and its address.

    Raises BackendUnavailable, or ConfigError where a secret of the job is not in this process's environment.
    """
    workers.variables = take_variables(workers.spec.config)
    if given.ray is not None:
        place = RayPlace(given.ray, "")
    else:
        place = wait_for_ray(given.state_folder / "ray.json", given.state_folder / "error.txt")
    status.dashboard = place.dashboard
    workers.connect(place)
    try:
        server = MessageServer(secret, inbox.put, host=_address_towards(workers.ray_address))
        return server, server.start()
    except OSError as error:
        raise BackendUnavailable(f"the controller cannot listen for its workers: {error}") from error


def take_variables(config: JobConfig) -> dict[str, str]:
    """Set the job's environment variables in this process; what its workers are to be given by call.

    Raises ConfigError where a secret is not in this process's environment.
    """
    given = environment.handed_over(config, os.environ)
    # The process of W&B is started by this one, and may need them too.
    set_variables({**environment.recorded(config), **environment.secrets(config, os.environ)})
    return given


def end_at_once(end: End, leadership: Leadership, run: RunStore, recorder: RunRecorder, status: StatusWriter) -> None:
    """The record of a run that ends before it has workers. Raises LeadershipLost."""
    open_term(
        run, leadership, base_on_checkpoint(leadership.inherited, next(iter(leadership.inherited.checkpoints), None)), recorder, status
    )
    leadership.end = end
    write_end(leadership, end, recorder, status)


def closed(writer: StoreWriter, recorder: RunRecorder, end: End, server: MessageServer | None = None) -> int:
    """Wait until the record is written, then end what writes it; the process's exit code."""
    written = writer.drain(DRAIN_S)
    if server is not None:
        server.stop()
    if not written:
        log.error(f"the final state could not be written: {end.state}. {end.reason}")
    return 0


def _printed_into(inbox: Inbox) -> Callable[[WorkerId, str, str], None]:
    return lambda worker, stream, line: inbox.put(LinePrinted(worker, stream, line))


def _pod_bounds(given: Given, inbox: Inbox) -> PodBounds | None:
    group = given.pod_group
    if group is None:
        return None
    return PodBounds(lambda: PodPatches(given.run.run_id, group), lambda why: inbox.put(PodBoundsRefused(why)))


def _address_towards(address: str) -> str:
    """This machine's address as the Ray at host:port sees it."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
