"""The events of a run: one type for each kind of entry of the stream `events`, and their JSON.

A stored event is one flat JSON object: `time`, `term`, `generation`, `step` and `kind` say when and where it happened, the other
keys are the facts of its kind. Writers and readers hold a RecordedEvent; `encode` and `decode` are the only ones that know the JSON.

Older and newer launchers read each other's runs: a kind that is not known here, or one that lacks a fact, decodes to an
UnknownEvent, and facts beside the known ones stay in `extra`. Both are encoded as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import UNSET, Struct, UnsetType, to_builtins
from msgspec.structs import fields

from launcher.core.types import Generation, Json, JsonObject, Step, Term, WorkerId
from launcher.record.members import Member, ResizeFacts
from launcher.record.parsing import parsed
from launcher.record.status import JobState


class Event(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What happened. The tag of a class is the event's kind, its fields are the facts."""


# terms


class TermStarted(Event, frozen=True, kw_only=True, tag="term_started"):
    from_term: Term | None
    """Null for the first term of a run."""
    checkpoint_step: Step | None
    adopted_step: Step | None
    steps_lost: int
    """Committed steps of earlier terms that have to be computed again."""


class WorkersAdopted(Event, frozen=True, kw_only=True, tag="workers_adopted"):
    """A new controller took over living workers."""

    workers: tuple[Member, ...]


class AllWorkersLost(Event, frozen=True, kw_only=True, tag="all_workers_lost"):
    reason: str


class FirstStep(Event, frozen=True, kw_only=True, tag="first_step"):
    """The first step of the run that was committed."""

    at: str
    """When a worker did it, in ISO 8601."""


class Stopping(Event, frozen=True, kw_only=True, tag="stopping"):
    """The workers were asked to stop."""


class Ended(Event, frozen=True, kw_only=True, tag="ended"):
    """The run has its final state. A controller gives the exit code; `by` names the person who closed a run that had no controller."""

    state: JobState
    reason: str
    exit_code: int | UnsetType = UNSET
    by: str | UnsetType = UNSET


# generations


class GenerationPrepared(Event, frozen=True, kw_only=True, tag="generation_prepared"):
    to_generation: Generation
    world_size: int


class GenerationWithdrawn(Event, frozen=True, kw_only=True, tag="generation_withdrawn"):
    to_generation: Generation


class GenerationRefused(Event, frozen=True, kw_only=True, tag="generation_refused"):
    worker: WorkerId
    to_generation: Generation
    detail: str


class GenerationFormed(Event, frozen=True, kw_only=True, tag="generation_formed"):
    cause: str
    world_size: int
    workers: tuple[Member, ...]
    held: bool
    """The group is smaller than it may be: it keeps its state and does not train."""


class CollectiveLeft(Event, frozen=True, kw_only=True, tag="collective_left"):
    """A worker left its process group because it broke."""

    worker: WorkerId
    detail: str


class Resized(Event, ResizeFacts, frozen=True, kw_only=True, tag="resized"):
    """A change of the group is complete."""


# workers


class WorkerStarted(Event, frozen=True, kw_only=True, tag="worker_started"):
    worker: WorkerId
    pid: int
    node: str


class WorkerReady(Event, frozen=True, kw_only=True, tag="worker_ready"):
    """A worker has built the job."""

    worker: WorkerId
    device: str
    threads: int
    fused: bool
    """Whether several shards go through one forward pass."""
    fuse_reason: str
    import_s: float
    build_s: float


class WorkerDraining(Event, frozen=True, kw_only=True, tag="worker_draining"):
    """A worker will be taken away, and leaves before that."""

    worker: WorkerId
    deadline_s: float
    detail: str


class WorkerReleased(Event, frozen=True, kw_only=True, tag="worker_released"):
    """A worker left with a change of the group."""

    worker: WorkerId


class WorkerLost(Event, frozen=True, kw_only=True, tag="worker_lost"):
    worker: WorkerId
    rank: int | None
    """Null where the worker was no member of the generation."""
    pid: int | None
    node: str | None
    reason: str


class WorkerEvicted(Event, frozen=True, kw_only=True, tag="worker_evicted"):
    """The controller ended a worker that may still have lived."""

    worker: WorkerId
    rank: int | None
    pid: int | None
    node: str | None
    reason: str


class WorkerDied(Event, frozen=True, kw_only=True, tag="worker_died"):
    """How the process of a lost worker ended, once that is known: after `worker_lost`."""

    worker: WorkerId
    rank: int | None
    """Null where the worker was no member of the generation."""
    pid: int | None
    node: str | None
    detail: str
    """The signal or the exit code, and what Ray knows beside that."""
    last_lines: tuple[str, ...]
    """Of what it printed."""


class WorkerError(Event, frozen=True, kw_only=True, tag="worker_error"):
    """An error of the user's code or of ours on a worker."""

    worker: WorkerId
    rank: int | None
    at: Step | None
    """The step that failed; null before training."""
    detail: str


class ConnectionClosed(Event, frozen=True, kw_only=True, tag="connection_closed"):
    """A connection sent a frame that does not parse, and was closed."""

    worker: WorkerId | None
    """Null where the connection had not said whose it is."""
    detail: str


class Straggler(Event, frozen=True, kw_only=True, tag="straggler"):
    worker: WorkerId
    ratio: float
    """Its seconds per shard to the median of the other members'."""
    reason: str


# size


class ResizeWished(Event, frozen=True, kw_only=True, tag="resize_wished"):
    """A person changed the desired size."""

    by: str
    workers: str
    """The bounds: "MIN..MAX"."""
    target: int


class Policy(Event, frozen=True, kw_only=True, tag="policy"):
    """What a policy decided, in its words."""

    reason: str


class OffersCancelled(Event, frozen=True, kw_only=True, tag="offers_cancelled"):
    """Workers that had been started are not needed any more."""

    workers: tuple[WorkerId, ...]
    reason: str


class ClusterBoundsRefused(Event, frozen=True, kw_only=True, tag="cluster_bounds_refused"):
    """Kubernetes did not take the bounds of the group of worker pods."""

    detail: str


# steps and checkpoints


class LedgerEntry(Event, frozen=True, kw_only=True, tag="steps"):
    """The steps first..last were committed, computed by one generation."""

    first: Step
    last: Step
    samples: tuple[int, int]
    """Those of the stream of samples that went into the steps: from, up to and without."""


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    at: Step
    metrics: dict[str, float | None]
    """Of the held-out split; null: not finite."""


class CheckpointCommitted(Event, frozen=True, kw_only=True, tag="checkpoint_committed"):
    checkpoint_step: Step
    uri: str


class CheckpointFailed(Event, frozen=True, kw_only=True, tag="checkpoint_failed"):
    checkpoint_step: Step
    detail: str


class CheckpointCorrupt(Event, frozen=True, kw_only=True, tag="checkpoint_corrupt"):
    """A checkpoint could not be loaded: the run goes back to an older one."""

    checkpoint_step: Step
    detail: str


# tracking


class Tracking(Event, frozen=True, kw_only=True, tag="tracking"):
    """What a tracker says of itself. `state`: started, slow, failed or dropped."""

    tracker: str
    state: str
    message: str
    mode: str | UnsetType = UNSET
    """online or offline."""
    folder: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    rows: int | UnsetType = UNSET
    """That did not reach the tracker."""


class UnknownEvent(Struct, frozen=True, kw_only=True):
    """A kind, or facts of a kind, that this version does not know."""

    kind: str
    facts: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class RecordedEvent:
    """An event with its stamp."""

    time: str
    """ISO 8601 in UTC."""
    term: Term
    generation: Generation
    step: Step
    """Committed steps at that time; of a LedgerEntry its last one."""
    event: Event | UnknownEvent
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Facts beside those that this version knows."""

    @property
    def kind(self) -> str:
        return self.event.kind if isinstance(self.event, UnknownEvent) else kind_of(type(self.event))

    @property
    def facts(self) -> dict[str, Json]:
        """The event without its stamp, as JSON; those of a known kind are sorted, as the store has them."""
        if isinstance(self.event, UnknownEvent):
            return dict(self.event.facts)
        known: dict[str, Json] = to_builtins(self.event)
        del known["kind"]
        known = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
        return dict(sorted({**known, **self.extra}.items()))


class _Stamp(Struct, frozen=True, kw_only=True):
    time: str
    term: Term
    generation: Generation
    step: Step
    kind: str


STAMP = _Stamp.__struct_fields__
"""Keys of every stored event; the others are facts."""


def kind_of(event: type[Event]) -> str:
    """The kind that an event of this class has in JSON."""
    return str(event.__struct_config__.tag)


KINDS: Mapping[str, type[Event]] = {kind_of(event): event for event in Event.__subclasses__()}
_FACTS = {kind: {fact.name: fact.required for fact in fields(event)} for kind, event in KINDS.items()}


def encode(recorded: RecordedEvent) -> JsonObject:
    """The event as the store has it: one flat object, its keys sorted."""
    stamp: JsonObject = {
        "time": recorded.time,
        "term": recorded.term,
        "generation": recorded.generation,
        "step": recorded.step,
        "kind": recorded.kind,
    }
    return dict(sorted({**recorded.facts, **stamp}.items()))


def decode(document: JsonObject, *, where: str) -> RecordedEvent:
    """An entry of the stream `events`; `where` names its segment, for the error.

    Raises StoreDamaged where the stamp is not whole or a fact has the wrong type.
    """
    stamp = parsed(document, _Stamp, where=where)
    facts = {name: value for name, value in document.items() if name not in STAMP}
    event: Event | UnknownEvent = UnknownEvent(kind=stamp.kind, facts=facts)
    extra: dict[str, Json] = {}
    known = _FACTS.get(stamp.kind)
    if known is not None and all(name in facts for name, required in known.items() if required):
        event = parsed({**facts, "kind": stamp.kind}, KINDS[stamp.kind], where=where)
        extra = {name: value for name, value in facts.items() if name not in known}
    return RecordedEvent(time=stamp.time, term=stamp.term, generation=stamp.generation, step=stamp.step, event=event, extra=extra)
