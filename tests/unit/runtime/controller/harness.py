"""A whole controller over fakes: the real parts as `assemble` joins them, with nothing real around them, and no time that passes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from launcher.checkpoint.catalog import manifest_key
from launcher.checkpoint.manifest import CheckpointPart, ChunkRef
from launcher.core.clock import ManualClock
from launcher.core.types import Generation, Rank, RunId, Step, Term, WorkerId, WorldSize
from launcher.record.desired import Desired, WorkerBounds
from launcher.record.events import Event, LedgerEntry, RecordedEvent, UnknownEvent, decode, encode
from launcher.record.lineage import TermBase
from launcher.record.rows import encode_row
from launcher.record.run_store import RunStore
from launcher.record.status import RunStatus
from launcher.runtime.cluster.pod_bounds import PodBounds
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused, Invitation, WorkerGroup
from launcher.runtime.controller.assembly import assemble
from launcher.runtime.controller.effects import StartWorkers
from launcher.runtime.controller.inbox import Inbox, Item, LedgerDurable
from launcher.runtime.controller.takeover import claim_leadership
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.group import Group
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.records.store_writer import StoreWriter
from launcher.runtime.transport.server import MessageServer, Received
from tests.support.recording import SUBMITTED_AT, ImmediateWriter, job_spec, metrics_row
from tests.support.stores import MemoryStore

A, B, C, D = WorkerId("w0"), WorkerId("w1"), WorkerId("w2"), WorkerId("w3")
G0, G1, G2, G3 = Generation(0), Generation(1), Generation(2), Generation(3)
JOB = m.Job(device="cpu", total_steps=100, data_size=640)
READY = m.Ready(job=JOB, threads=1, fused=True, fuse_reason="", import_s=0.5, build_s=0.25)
CONTACT = ("10.0.0.1", 4242, "5ec7e7")
TIMING = Timing(tick_s=0.0, attach_s=4.0, repeat_s=1.0, policy_s=0.25, prepare_s=10.0, settle_s=10.0)
"""Without a wait for the inbox: there is nobody who could put anything into it meanwhile."""
Kind = TypeVar("Kind", bound=Event)


# what workers say


def described(
    worker: WorkerId,
    *,
    ready: bool = False,
    generation: int = 0,
    rank: int = 0,
    world_size: int = 0,
    applied: int | None = None,
    inside: bool = False,
    outcome: e.Outcome | None = None,
    pending: int | None = None,
    knows_commit: bool = False,
    seen: int | None = None,
    born: int = 1,
    phase: str = "training",
    released: bool = False,
    spec: int = 1,
    pid: int = 7,
    node: str = "here",
    node_id: str = "",
    undecided: tuple[tuple[Step, Generation], ...] = (),
) -> m.WorkerDescription:
    """A worker's answer to the controller that calls it; it has seen no newer generation than it was in, unless that is said."""
    state = e.WorkerState(
        worker,
        ready,
        Generation(generation),
        rank,
        world_size,
        Step(applied) if applied is not None else None,
        inside,
        outcome,
        Generation(pending) if pending is not None else None,
        knows_commit,
        Generation(seen if seen is not None else generation),
        Term(born),
    )
    return m.WorkerDescription(
        state=state,
        phase=phase,
        released=released,
        spec=spec,
        pid=pid,
        node=node,
        node_id=node_id,
        job=JOB if ready else None,
        undecided=undecided,
        stdout="",
        stderr="",
    )


def beat(
    generation: int = 1,
    applied: int | None = 0,
    *,
    outcome: e.Outcome | None = None,
    out: bool = False,
    formed_at: int | None = None,
    progress: int = 0,
    waiting: bool = False,
    phase: str = "training",
    busy_s: float | None = None,
    step_s: float | None = None,
) -> m.Beat:
    return m.Beat(
        generation=Generation(generation),
        applied=Step(applied) if applied is not None else None,
        outcome=outcome,
        out=out,
        formed_at=Step(formed_at) if formed_at is not None else None,
        ready=True,
        phase=phase,
        progress=progress,
        waiting=waiting,
        busy_s=busy_s,
        step_s=step_s,
    )


def part(rank: int, *, step: int = 5, generation: int = 1, world_size: int = 2) -> CheckpointPart:
    """One rank's part of a checkpoint of one chunk for each rank."""
    return CheckpointPart(
        step=Step(step),
        generation=Generation(generation),
        rank=Rank(rank),
        world_size=WorldSize(world_size),
        chunk_count=world_size,
        chunks=(ChunkRef(rank, f"{rank:064d}", 1),),
        tensors=() if rank == 0 else None,
        state={} if rank == 0 else None,
    )


def store_chunks(run: RunStore, count: int = 2) -> None:
    """Of the parts of `part`."""
    for rank in range(count):
        run.store.put(run.key(f"blobs/{rank:064d}"), b"x")


# what is in the store


def desired(
    minimum: int = 1, maximum: int = 4, target: int = 2, *, revision: int = 1, state: Literal["running", "stopped"] = "running"
) -> Desired:
    bounds = WorkerBounds(min=minimum, max=maximum, target=target)
    return Desired(revision=revision, state=state, spec=1, workers=bounds, by="me", at=SUBMITTED_AT)


def leave_term(
    run: RunStore,
    *,
    recorded: int = 0,
    generation: int = 1,
    checkpoints: Iterable[int] = (),
    workers: tuple[WorkerId, ...] = (),
) -> Term:
    """What a controller leaves that is gone: a term with a base, the ledger and metrics of its steps, its checkpoints."""
    before = max(run.terms()[1], default=None)
    term = run.claim_term("an earlier controller", SUBMITTED_AT)
    run.create_base(term, TermBase(from_term=before, checkpoint_step=None, adopted_step=None, workers=workers))
    if recorded:
        entry = LedgerEntry(first=Step(1), last=Step(recorded), samples=(0, recorded * 64))
        stamped = RecordedEvent(time=SUBMITTED_AT, term=term, generation=Generation(generation), step=Step(recorded), event=entry)
        run.put_segment("metrics", term, 1, [encode_row(metrics_row(recorded))])
        run.put_segment("events", term, 1, [encode(stamped)])
    for step in checkpoints:
        run.store.put(run.key(manifest_key(step, term)), b"{}")
    return term


# what is around a controller


class FakeWorkers:
    """In place of WorkerGroup: names workers in turn, and remembers what was asked of it."""

    def __init__(self, gpu: int) -> None:
        self.gpu = gpu
        self.started: list[tuple[tuple[WorkerId, ...], bool]] = []
        """Which, and whether they join a group at work."""
        self.attached: list[tuple[WorkerId, Invitation]] = []
        self.ended: list[WorkerId] = []
        self.death = "killed for want of memory"
        """What Ray says of every death."""
        self._number = 0

    def start(self, count: int, *, joins: bool) -> list[WorkerId]:
        started = [WorkerId(f"w{number}") for number in range(self._number, self._number + count)]
        self._number += count
        self.started.append((tuple(started), joins))
        return started

    def attach(self, worker: WorkerId, invitation: Invitation, done: Callable[[Attached | AttachRefused | AttachFailed], None]) -> None:
        self.attached.append((worker, invitation))

    def why_dead(self, worker: WorkerId, done: Callable[[WorkerId, str], None]) -> None:
        done(worker, self.death)

    def end(self, workers: list[WorkerId] | None = None) -> None:
        assert workers is not None, "whoever leads names whom it ends"
        self.ended += workers


class FakeServer:
    """In place of MessageServer: remembers what was sent, and to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[WorkerId, m.ToWorker]] = []
        self.dropped: list[WorkerId] = []

    def send(self, worker: WorkerId, message: m.ToWorker) -> None:
        self.sent.append((worker, message))

    def send_all(self, messages: Iterable[tuple[WorkerId, m.ToWorker]]) -> None:
        self.sent += messages

    def drop(self, worker: WorkerId) -> None:
        self.dropped.append(worker)


class FakeOutput:
    """In place of WorkerOutput: remembers whose files are followed, and whether from their end."""

    def __init__(self) -> None:
        self.followed: list[tuple[WorkerId, bool]] = []

    def follow(self, worker: WorkerId, described: m.WorkerDescription, *, from_end: bool) -> None:
        self.followed.append((worker, from_end))


class FakePods:
    """In place of PodBounds: remembers what is wanted."""

    def __init__(self) -> None:
        self.wanted: list[WorkerBounds] = []

    def want(self, bounds: WorkerBounds) -> None:
        self.wanted.append(bounds)


class Harness:
    """A controller that has claimed the next term of run "r" and has not begun yet."""

    def __init__(
        self, wanted: Desired | None = None, *, store: MemoryStore | None = None, gpu: int = 0, timing: Timing = TIMING, **changes: Any
    ) -> None:
        """`changes` of the job's configuration, as job_config takes them."""
        self.store = store if store is not None else MemoryStore()
        self.run = RunStore(self.store, RunId("r"))
        self.clock, self.inbox, self.spec = ManualClock(), Inbox(), job_spec(**changes)
        wanted = wanted if wanted is not None else desired()
        self.run.create_desired(wanted)
        leadership = claim_leadership(self.run, wanted, "me", self.clock)
        assert leadership is not None
        self.leadership, left = leadership, leadership.inherited
        self.workers, self.server, self.output, self.pods = FakeWorkers(gpu), FakeServer(), FakeOutput(), FakePods()
        self.shown: list[RunStatus] = []
        """Every status that was written."""
        writer = cast(StoreWriter, ImmediateWriter())
        self.recorder = RunRecorder(
            self.run,
            self.spec,
            writer,
            self.clock,
            leadership.term,
            left,
            state_folder=Path(),
            durable=lambda step, of_term: self.inbox.put(LedgerDurable(step, of_term)),
        )
        self.status = StatusWriter(self.run, self.clock, self.spec, writer, left, self.shown.append)
        self.controller, self.committer = assemble(
            self.run,
            self.spec,
            leadership,
            inbox=self.inbox,
            writer=writer,
            recorder=self.recorder,
            status=self.status,
            workers=cast(WorkerGroup, self.workers),
            server=cast(MessageServer, self.server),
            contact=CONTACT,
            output=cast(WorkerOutput, self.output),
            pods=cast(PodBounds, self.pods),
            clock=self.clock,
            timing=timing,
            holder="me",
        )
        # The parts have no other door than the controller that is made of them.
        self.takeover, self.dispatcher = self.controller._takeover, self.controller._dispatcher
        self.executor, self.lifecycle = self.controller._executor, self.controller._lifecycle
        self.reconciler, self.tracker, self.registry = self.controller._reconciler, self.controller._tracker, self.controller._registry
        self.health = self.lifecycle._health
        self._recorded = self._sent = 0
        self.events()  # those of earlier terms

    # what was done

    @property
    def group(self) -> Group:
        return self.leadership.group

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def events(self) -> list[Event | UnknownEvent]:
        """What was recorded since the last call."""
        self.recorder.flush(ledger=False)
        names = [name for _, _, name in self.run.segments("events")]
        found = [decode(record, where=name).event for name in names for record in self.run.segment("events", name)]
        new, self._recorded = found[self._recorded :], len(found)
        return new

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """What was recorded of one kind since the last call of this or of `events`."""
        return [event for event in self.events() if isinstance(event, kind)]

    def sent(self) -> list[tuple[WorkerId, m.ToWorker]]:
        """What was sent since the last call."""
        new, self._sent = self.server.sent[self._sent :], len(self.server.sent)
        return new

    def items(self) -> list[Item]:
        """What the inbox holds; it is empty afterwards."""
        found = []
        while (item := self.inbox.get(0.0)) is not None:
            found.append(item)
        return found

    def quiet(self) -> None:
        """Forget what was sent and recorded so far."""
        self.sent()
        self.events()

    # what happens

    def hear(self, worker: WorkerId, *messages: m.ToController) -> None:
        for message in messages:
            self.controller.handle(Received(worker, message))

    def answer(self, *descriptions: m.WorkerDescription) -> None:
        """Workers answer the controller that has called them."""
        for description in descriptions:
            self.controller.handle(Attached(description.state.worker, description))

    def settle(self) -> None:
        """Handle what waits in the inbox."""
        for item in self.items():
            self.controller.handle(item)

    def tick_after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()
        self.controller.tick()

    def warm(self, count: int) -> tuple[WorkerId, ...]:
        """So many new workers, that are ready; each is on a node of its own."""
        self.controller.process([StartWorkers(count)])
        started = self.workers.started[-1][0]
        for worker in started:
            self.answer(described(worker, pid=100 + int(worker[1:]), node=f"host-{worker}", node_id=f"node-{worker}"))
            self.hear(worker, READY)
        return started

    def change(
        self, join: tuple[WorkerId, ...] = (), leave: tuple[WorkerId, ...] = (), *, cause: str = "resize", step: int = 0
    ) -> Generation:
        """The group changes from one whole generation to the next, whose number is returned."""
        self.controller.process([e.ChangeWanted(join, leave, cause=cause, reason=f"{cause} it")])
        proposal = self.group.proposal
        assert proposal is not None
        number = proposal.formation.generation
        for worker in proposal.everybody:
            self.hear(worker, m.Prepared(number, None))
        for worker in leave:
            self.hear(worker, m.Left(number, Step(step)))
        for worker in proposal.formation.ranks:
            self.hear(worker, m.Formed(number, Step(step)))
        assert self.group.generation == number
        return number

    def first_steps(self, step: int = 1) -> None:
        """Every member does its first step in the present generation."""
        for worker in self.group.ranks:
            self.hear(worker, m.FirstStep(SUBMITTED_AT, beat(self.group.generation, step, step_s=0.5)))

    def training(self, count: int = 2) -> tuple[WorkerId, ...]:
        """Generation 1 of so many workers trains; all that was before is forgotten."""
        self.controller.begin([])
        workers = self.warm(count)
        assert self.change(workers, cause="start") == G1
        self.first_steps()
        self.quiet()
        return workers

    def recover(self, step: int) -> None:
        """All that were told to leave do so with this step, and form the next generation."""
        for worker in self.group.awaited:
            self.hear(worker, m.Left(self.group.left_up_to, Step(step)))
        proposal = self.group.proposal
        assert proposal is not None
        for worker in proposal.everybody:
            self.hear(worker, m.Prepared(proposal.formation.generation, None))
        for worker in proposal.formation.ranks:
            self.hear(worker, m.Formed(proposal.formation.generation, Step(step)))
        assert self.group.ranks == proposal.formation.ranks
