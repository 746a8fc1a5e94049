"""Every message between controller and worker: one frozen type each, and the one codec that checks what comes in. Pure.

On the wire a message is a JSON object whose "kind" says which one it is (transport/frames.py has the frames around it). What does not fit
its type is refused as a whole (MessageInvalid): whoever receives checks once, here, and nobody behind has to.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.rows import MetricsRow
from launcher.runtime.protocol.events import Outcome, WorkerState


class MessageInvalid(ValueError):
    """What came over a connection is none of the messages that may come there; says why."""


class Message(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base of all messages."""


# to a worker


class Prepare(Message, frozen=True, tag="prepare"):
    """Connect to the others of a generation, in the background; answered with Prepared or Refused."""

    generation: Generation
    rank: int | None
    """None: this worker leaves with the change, and only acknowledges."""
    world_size: int
    leave: bool
    """Leave every generation before it first, at once, and say so (Left)."""


class Commit(Message, frozen=True, tag="commit"):
    """Go over to the generation as soon as every member of the present one knows this; answered with Formed."""

    generation: Generation
    step: Step | None
    """Of the state; None: that of the boundary at which the members go over."""
    again: bool
    """The generation before ended in the middle: what belonged to its last step may have to be done again."""
    hold: bool
    """Share the state, save it, and wait for the next generation."""
    save: bool
    """Save a checkpoint at once."""
    donors: tuple[int, ...]
    """Ranks that send the state; empty, as `receivers`, for a worker that takes no part in the transfer."""
    receivers: tuple[int, ...]


class Withdraw(Message, frozen=True, tag="withdraw"):
    """A generation that was being prepared comes to nothing."""

    generation: Generation


class Leave(Message, frozen=True, tag="leave"):
    """Leave everything up to this generation, at once; answered with Left."""

    generation: Generation


class Release(Message, frozen=True, tag="release"):
    """This worker's part is done: end, once nothing is left to upload; answered with Released."""


class Stop(Message, frozen=True, tag="stop"):
    """Stop after a step."""


class CheckpointSource(msgspec.Struct, frozen=True):
    """The weights of another run to begin from."""

    runs: str
    run_id: str
    step: Step
    term: Term


class Load(Message, frozen=True, tag="load"):
    """Restore the checkpoint of `step` and `term`, or begin from the weights of another run; answered with Loaded or Corrupt."""

    step: Step | None = None
    term: Term | None = None
    init_from: CheckpointSource | None = None


class SendRecords(Message, frozen=True, tag="records"):
    """Say again every row and evaluation that is not known to be durable."""


class Durable(Message, frozen=True, tag="durable"):
    """The run store has the records of all steps through this one."""

    step: Step


class CheckpointDecided(Message, frozen=True, tag="checkpoint"):
    """A checkpoint is committed or abandoned: its parts need not be said again."""

    step: Step
    generation: Generation


class TermBegan(Message, frozen=True, tag="term"):
    """The controller goes on under this term."""

    term: Term


class Evicted(Message, frozen=True, tag="evicted"):
    """This worker was evicted: it ends itself."""


class Kept(Message, frozen=True, tag="kept"):
    """The answer to a worker that asks whether it was evicted: it was not."""


class Value(Message, frozen=True, tag="value"):
    """The value of a key by which the ranks of a generation find each other, in base64."""

    generation: Generation
    key: str
    value: str


ToWorker = (
    Prepare
    | Commit
    | Withdraw
    | Leave
    | Release
    | Stop
    | Load
    | SendRecords
    | Durable
    | CheckpointDecided
    | TermBegan
    | Evicted
    | Kept
    | Value
)


# to the controller


class Hello(Message, frozen=True, tag="hello"):
    """The first message of a connection."""

    worker: WorkerId
    asks: bool
    """Only to be told whether this worker was evicted."""


class Beat(Message, frozen=True, tag="beat"):
    """The heartbeat: all that may have been lost on the way."""

    generation: Generation
    """The newest that the worker is or was in."""
    applied: Step | None
    """Steps applied in the state that it holds; None: it holds none."""
    outcome: Outcome | None
    out: bool
    """It came out of its generation without having done what that had to do."""
    formed_at: Step | None
    """Of the state with which it formed its generation; None: it has not."""
    ready: bool
    phase: str
    """What its main thread does, e.g. building, training, saving."""
    progress: int
    """Forward passes since the worker began."""
    waiting: bool
    """The main thread is inside a collective."""
    busy_s: float | None
    """Seconds of a step in which it computes and does not wait for others, smoothed."""
    step_s: float | None
    """Seconds of a whole step, smoothed."""


class FirstStep(Message, frozen=True, tag="first"):
    """The worker did its first step in a generation."""

    time: str
    beat: Beat


class Job(msgspec.Struct, frozen=True):
    """What a worker found when it built the job."""

    device: str
    total_steps: int | None
    data_size: int


class WorkerDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker answers, through Ray, to the controller that calls it."""

    state: WorkerState
    phase: str
    released: bool
    spec: int
    """Number of the spec that it was started with."""
    pid: int
    node: str
    """Host name."""
    job: Job | None
    """None until it is built."""
    undecided: tuple[tuple[Step, Generation], ...]
    """Checkpoints of which it has stored a part, and no controller has said that they are decided."""
    stdout: str
    """Path of the file that its output goes to; "" where it is none."""
    stderr: str
    node_id: str = ""
    """In hexadecimal, as Ray has it."""
    node_ip: str = ""


class Ready(Message, frozen=True, tag="ready"):
    """Warm: a generation may be formed with this worker."""

    job: Job
    threads: int
    fused: bool
    """Several shards are computed in one forward pass."""
    fuse_reason: str
    import_s: float
    build_s: float


class Loaded(Message, frozen=True, tag="loaded"):
    step: Step


class Corrupt(Message, frozen=True, tag="corrupt"):
    """The checkpoint that was to be restored is not whole."""

    step: Step
    detail: str


class Prepared(Message, frozen=True, tag="prepared"):
    generation: Generation
    connect_s: float | None


class Refused(Message, frozen=True, tag="refused"):
    """The worker could not connect to the others of a generation."""

    generation: Generation
    detail: str


class Formed(Message, frozen=True, tag="formed"):
    """The worker holds the state of the generation; `step` is that of this state. In seconds: how long its parts took."""

    generation: Generation
    step: Step
    connect_s: float | None = None
    move_s: float | None = None
    pause_s: float | None = None


class Left(Message, frozen=True, tag="left"):
    """The worker is out of every generation up to this one."""

    generation: Generation
    applied: Step | None


class Broken(Message, frozen=True, tag="broken"):
    """The worker's collective broke, or was cut."""

    detail: str


class Ended(Message, frozen=True, tag="ended"):
    generation: Generation
    applied: Step
    outcome: Outcome


class Released(Message, frozen=True, tag="released"):
    """Nothing is left to upload."""


class Row(Message, frozen=True, tag="row"):
    """Metrics over the steps from `first` to the row's own step, which one generation applied."""

    first: Step
    generation: Generation
    row: MetricsRow


class Evaluated(Message, frozen=True, tag="evaluated"):
    """`metrics`: on the held-out split; None where the value is not finite."""

    step: Step
    metrics: dict[str, float | None]


class Saved(Message, frozen=True, tag="saved"):
    """This worker's part of a checkpoint is stored."""

    seconds: float
    document: dict[str, object]
    """The part, as CheckpointPart.to_json writes it."""

    def __post_init__(self) -> None:
        try:
            self.part  # noqa: B018 - parsed to see whether it can be
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no part of a checkpoint: {error!r}") from error

    @classmethod
    def of(cls, part: CheckpointPart, seconds: float) -> Saved:
        return cls(seconds, {**part.to_json()})

    @property
    def part(self) -> CheckpointPart:
        return CheckpointPart.from_json(self.document)


class SaveFailed(Message, frozen=True, tag="save_failed"):
    step: Step
    generation: Generation
    detail: str


class Error(Message, frozen=True, tag="error"):
    """The worker's main thread ended with an error; `reason` is one line, then the traceback where there is one."""

    reason: str
    exit_code: ExitCode
    step: Step | None
    generation: Generation
    recoverable: bool
    """Raised by the job's own code, or by what may be otherwise in another process."""


class Draining(Message, frozen=True, tag="draining"):
    """The worker's process or machine will go away in `deadline_s` seconds."""

    source: str
    deadline_s: float
    detail: str


class SetKey(Message, frozen=True, tag="set"):
    """A key by which the ranks of a generation find each other; the value in base64."""

    generation: Generation
    key: str
    value: str


class GetKey(Message, frozen=True, tag="get"):
    """Answered with Value, as soon as some rank has set it."""

    generation: Generation
    key: str


ToController = (
    Hello
    | Beat
    | FirstStep
    | Ready
    | Loaded
    | Corrupt
    | Prepared
    | Refused
    | Formed
    | Left
    | Broken
    | Ended
    | Released
    | Row
    | Evaluated
    | Saved
    | SaveFailed
    | Error
    | Draining
    | SetKey
    | GetKey
)

_Union = TypeVar("_Union")
_TO_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
_TO_CONTROLLER: msgspec.json.Decoder[ToController] = msgspec.json.Decoder(ToController)


def encode(message: Message) -> bytes:
    """As JSON, in UTF-8. What a text holds and UTF-8 has not (a lone surrogate, e.g. of a file name) is written as its escape."""
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(message)))


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, (list, tuple)) else value


def decode_to_worker(data: bytes) -> ToWorker:
    """Raises MessageInvalid."""
    return _decoded(_TO_WORKER, data)


def decode_to_controller(data: bytes) -> ToController:
    """Raises MessageInvalid."""
    return _decoded(_TO_CONTROLLER, data)


def _decoded(decoder: msgspec.json.Decoder[_Union], data: bytes) -> _Union:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageInvalid(str(error)) from error
