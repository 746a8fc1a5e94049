"""The generation protocol, the controller's side: what is heard in, orders out. It neither acts, waits nor reads a clock.

docs/protocol.md has the protocol and what it assumes; participant.py is the worker's side.

ASSEMBLING   no generation was formed yet: workers start, warm up and, where there is a checkpoint, load it
TRAINING     a generation is at work; a change of it may be prepared or committed meanwhile (`proposal`)
LEAVING      a member is lost: all others were told to leave, and their answers are awaited; they may connect to each other meanwhile
FORMING      the survivors form the next generation
ENDED        nothing more follows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.status import JobState

NONE = Generation(0)
"""Before the first generation."""
START = Step(0)
DONORS = 8
"""So many at the most send the state in one change: enough to fill a receiver's connection, and orders stay short."""
ATTEMPTS = 3
"""So often the same survivors try to form a generation before the one that comes last is given up."""


class Phase(Enum):
    ASSEMBLING = "assembling"
    TRAINING = "training"
    LEAVING = "leaving"
    FORMING = "forming"
    ENDED = "ended"


class Outcome(Enum):
    """Why a worker came out of its generation without being told to leave it."""

    FINISHED = "finished"
    STOPPED = "stopped"
    HELD = "held"
    """It saved, and waits for a generation that is large enough."""


@dataclass(slots=True)
class Peer:
    """What is known of a living worker."""

    ready: bool = False
    """Warm: a generation may be formed with it."""
    applied: Step | None = None
    """Steps applied in the state that it holds; None: it holds none."""
    generation: Generation = NONE
    """The newest that it was heard to be in."""
    outcome: tuple[Generation, Outcome] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a living worker tells a new controller of itself."""

    worker: WorkerId
    ready: bool
    generation: Generation
    """The newest that it was in; 0: none."""
    rank: int
    world_size: int
    applied: Step | None
    inside: bool
    """It did not leave that generation, and its collective did not break."""
    outcome: Outcome | None
    pending: Generation | None
    """Of a change that it was told to prepare."""
    knows_commit: bool
    """It was told that this change is committed."""
    seen: Generation
    """The newest that it was told of."""
    born: Term
    """The term that called it first."""


@dataclass(frozen=True, slots=True)
class Formation:
    """A generation: its workers in the order of their ranks."""

    generation: Generation
    ranks: tuple[WorkerId, ...]


@dataclass(slots=True)
class Proposal:
    """A generation that is being prepared, or is committed and not yet formed by all."""

    formation: Formation
    leaving: tuple[WorkerId, ...]
    """Members of the present generation that are not in it."""
    planned: bool
    """The present generation goes on until all of its members know of the commit."""
    cause: str
    reason: str
    hold: bool = False
    committed: Commit | None = None
    step: Step | None = None
    """Of the state with which it was formed, once a member has said so."""
    missing: set[WorkerId] = field(default_factory=set)
    """Those that have not acknowledged; after the commit, those that have not formed it (or left, if they leave)."""

    @property
    def everybody(self) -> tuple[WorkerId, ...]:
        return (*self.formation.ranks, *self.leaving)


# what is heard


@dataclass(frozen=True, slots=True)
class Started:
    """A worker was asked for; it is not warm yet."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Ready:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Loaded:
    worker: WorkerId
    step: Step


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A worker found the checkpoint of the term's base not whole."""

    worker: WorkerId
    detail: str


@dataclass(frozen=True, slots=True)
class ChangeWanted:
    """A policy, or a person, wants these in and those out. Ignored while another change is under way."""

    join: tuple[WorkerId, ...] = ()
    leave: tuple[WorkerId, ...] = ()
    cause: str = "resize"
    reason: str = ""
    hold: bool = False
    """All members save and wait, whoever joins or leaves."""


@dataclass(frozen=True, slots=True)
class Prepared:
    worker: WorkerId
    generation: Generation


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker could not connect to the others of a generation."""

    worker: WorkerId
    generation: Generation
    detail: str


@dataclass(frozen=True, slots=True)
class Formed:
    """`step` is that of the state with which it was formed, however far the worker has come since."""

    worker: WorkerId
    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is out of every generation up to this one; unasked where its collective broke."""

    worker: WorkerId
    generation: Generation
    applied: Step | None


@dataclass(frozen=True, slots=True)
class Applied:
    worker: WorkerId
    generation: Generation
    step: Step


@dataclass(frozen=True, slots=True)
class Ended:
    worker: WorkerId
    generation: Generation
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is dead, or was given up: it is never heard again."""

    worker: WorkerId
    reason: str
    cause: str = "lost"


@dataclass(frozen=True, slots=True)
class Stuck:
    """All members wait in one collective and nothing moves: let them out and see who answers."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A generation was not acknowledged by all in time."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class StopWanted:
    pass


@dataclass(frozen=True, slots=True)
class SaveStarted:
    """The first part of a checkpoint came; all of them are of one generation."""

    step: Step
    generation: Generation = NONE


@dataclass(frozen=True, slots=True)
class SaveDecided:
    """A checkpoint is committed, or given up with a reason."""

    step: Step
    failure: str = ""
    generation: Generation = NONE


Event = (
    Started
    | Ready
    | Loaded
    | Corrupt
    | ChangeWanted
    | Prepared
    | Refused
    | Formed
    | Left
    | Applied
    | Ended
    | Gone
    | Stuck
    | Expired
    | StopWanted
    | SaveStarted
    | SaveDecided
)


# orders


@dataclass(frozen=True, slots=True)
class Load:
    """Restore the checkpoint of the term's base (or the weights to begin from)."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Connect to the others of a generation; those in `leaving` only acknowledge."""

    formation: Formation
    leaving: tuple[WorkerId, ...]
    to: tuple[WorkerId, ...]
    leave: bool = False
    """Leave every generation before it first, at once, and say so."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Irrevocable: go over to the generation as soon as every member of the present one knows it."""

    formation: Formation
    leaving: tuple[WorkerId, ...]
    donors: tuple[int, ...]
    """Ranks that send the state. Who is neither donor nor receiver has it, and keeps it."""
    receivers: tuple[int, ...]
    step: Step | None
    """Of the state; None: that of the boundary at which the members go over."""
    again: bool
    """The generation before ended in the middle: what belonged to its last step may have to be done again."""
    hold: bool
    """Share the state, save it, and wait for the next generation."""
    save: bool
    """Save a checkpoint at once: one was abandoned."""
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    generation: Generation
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave every generation up to this one, at once, and say so."""

    generation: Generation
    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """End, once nothing is left to upload."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop after a step."""

    to: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End this worker; tell when it is done (Gone)."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class AbandonSaves:
    """A member of the generation that was saving is gone: checkpoints that miss a part will never be whole."""

    up_to: Generation
    """Of this generation, or an earlier one."""


@dataclass(frozen=True, slots=True)
class Changed:
    """For the record: a generation was formed by all of its members."""

    formation: Formation
    before: tuple[WorkerId, ...]
    cause: str
    reason: str
    step: Step
    hold: bool


@dataclass(frozen=True, slots=True)
class RollBack:
    """Take a new term on an older checkpoint than this one."""

    corrupt: Step
    detail: str


@dataclass(frozen=True, slots=True)
class AllLost:
    """Nobody holds the state any more: a new term, on the newest whole checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Write the final state and let all workers go."""

    state: JobState
    reason: str
    exit_code: ExitCode


Action = Load | Prepare | Commit | Withdraw | Leave | Release | Stop | GiveUp | AbandonSaves | Changed | RollBack | AllLost | End


class Coordinator:
    """One term's worker group. `handle` each event in turn and carry out what comes back, in order."""

    def __init__(
        self, *, minimum: int, load: bool, checkpoint: Step | None = None, recorded: Step = START, generation: Generation = NONE
    ) -> None:
        """`load`: there is something to restore before training; `checkpoint`: the newest one's step, whether it is restored or
        not; `recorded`: the ledger's, where workers are adopted; `generation`: the highest number that was ever used."""
        self.phase = Phase.ASSEMBLING
        self.minimum = minimum
        self.peers: dict[WorkerId, Peer] = {}
        self.current: Formation | None = None
        self.proposal: Proposal | None = None
        self.stopping = False
        self.held = False
        """The present generation is too small and waits."""
        self.number = generation
        self._load = load
        self._checkpoint = checkpoint
        self._awaited: set[WorkerId] = set()
        """Those that have not said that they left."""
        self._left_up_to = NONE
        """The generation up to which they were told to leave."""
        self._roster: tuple[WorkerId, ...] = ()
        """Who may hold the state while there is no generation, in the order of the ranks they had."""
        self._why = ("", "")
        self._attempts = 0
        self._done: dict[WorkerId, Outcome] = {}
        """Members of the present generation that did their part in it before they were gone."""
        self._ended = 0
        """All ranks of the present generation below this one had ended, so that the others need not be asked."""
        self._formed_at: list[tuple[Generation, Step]] = []
        """Of this term's generations, with which step each began."""
        self._saving: set[tuple[Step, Generation]] = set()
        self._saved = checkpoint or Step(0)
        self._unsaved = (Step(0), "")
        """The newest checkpoint that failed, and why; it matters until one of that step or a later one is committed."""
        self._save_again = False
        self._last_saves = 0
        """How often the end was put off, to save once more what could not be saved."""
        self._committed = recorded

    # what is so

    @property
    def generation(self) -> Generation:
        return self.current.generation if self.current is not None else NONE

    @property
    def ranks(self) -> tuple[WorkerId, ...]:
        """The members of the present generation, by rank; while there is none, those that may hold the state."""
        return self.current.ranks if self.current is not None else tuple(each for each in self._roster if each in self.peers)

    @property
    def settled(self) -> bool:
        """A change may be begun."""
        return self.phase in (Phase.ASSEMBLING, Phase.TRAINING) and self.proposal is None and not self.stopping

    @property
    def committed(self) -> Step:
        """Every member of the newest generation is known to hold this step."""
        if self.phase is Phase.TRAINING and self.current is not None:
            least = min((self._applied(worker) for worker in self.current.ranks), default=0)
            self._committed = max(self._committed, Step(least))
        return self._committed

    @property
    def awaited(self) -> tuple[WorkerId, ...]:
        """Those that were told to leave and have not said that they did."""
        return tuple(worker for worker in self._roster if worker in self._awaited) if self.phase is Phase.LEAVING else ()

    def on_line(self, step: Step, generation: Generation) -> bool:
        """Whether this generation's step is one that later generations go on from; else it was rolled back and computed again."""
        return all(step <= start for later, start in self._formed_at if later > generation)

    def _applied(self, worker: WorkerId) -> int:
        peer = self.peers.get(worker)
        return peer.applied if peer is not None and peer.applied is not None else 0

    @property
    def warm(self) -> list[WorkerId]:
        """Those that may join: warm, with the checkpoint loaded where there is no generation to take the state from."""
        inside = {*self.ranks, *(self.proposal.everybody if self.proposal is not None else ())}
        return [worker for worker, peer in self.peers.items() if worker not in inside and self._may_join(peer)]

    def _may_join(self, peer: Peer) -> bool:
        return peer.ready and (peer.applied is not None or not self._load or self.phase is not Phase.ASSEMBLING)

    def outstanding(self) -> list[Action]:
        """Orders that were not answered yet, to be said again: each may be carried out any number of times."""
        if self.phase is Phase.LEAVING:
            return self._outstanding_to_leave()
        proposal = self.proposal
        if proposal is None and self._load and self.phase is Phase.ASSEMBLING:
            unloaded = tuple(worker for worker, peer in self.peers.items() if peer.ready and peer.applied is None)
            return [Load(unloaded)] if unloaded else []
        if proposal is None or not proposal.missing:
            return []
        to = tuple(worker for worker in proposal.everybody if worker in proposal.missing)
        if proposal.committed is None:
            return [Prepare(proposal.formation, proposal.leaving, to)]
        return [replace(proposal.committed, to=to)]

    def _outstanding_to_leave(self) -> list[Action]:
        ranks = dict.fromkeys(self.proposal.formation.ranks if self.proposal is not None else ())
        others = tuple(worker for worker in self.awaited if worker not in ranks)
        actions: list[Action] = [Leave(self._left_up_to, others)] if others else []
        if self.proposal is not None:
            to = tuple(worker for worker in ranks if worker in self._awaited or worker in self.proposal.missing)
            actions += [Prepare(self.proposal.formation, (), to, leave=True)] if to else []
        return actions

    # taking over

    def adopt(self, found: Iterable[Found]) -> list[Action]:
        """The workers that a new controller finds, at least one of which holds the state.

        They go on as they are if all members of one generation are there, nobody else holds a state or was ever called into a
        generation, and nobody was told that a change is committed. Otherwise what each one holds, and where it waits, is not
        certain, and all are let out.
        """
        known = list(found)
        for each in known:
            outcome = (each.generation, each.outcome) if each.outcome is not None else None
            self.peers[each.worker] = Peer(each.ready, each.applied, each.generation, outcome)
            self.number = max(self.number, each.generation, each.pending or NONE)
        holders = sorted((each for each in known if each.applied is not None), key=lambda each: (-each.generation, each.rank))
        inside = [each for each in holders if each.inside and each.generation == holders[0].generation]
        whole = [each.rank for each in inside] == list(range(inside[0].world_size)) if inside else False
        others = any(each.applied is not None or each.generation for each in known if each not in inside)
        self.phase = Phase.TRAINING
        if not whole or others or any(each.knows_commit for each in known):
            called = (each for each in known if each.applied is None and (each.generation or each.pending))
            self._roster = tuple(each.worker for each in (*holders, *called))
            return self._recover("adopted", "a new controller found the group in the middle of a change")
        self.current = Formation(inside[0].generation, tuple(each.worker for each in inside))
        pending = tuple(each.worker for each in known if each.pending is not None)
        return [*([Withdraw(self.number, pending)] if pending else []), *self._finish()]

    # what is heard

    def handle(self, event: Event) -> list[Action]:
        if self.phase is Phase.ENDED:
            return []
        match event:
            case Applied(worker, generation, step):
                return self._hear_applied(worker, generation, step)
            case Prepared(worker, generation):  # those that all workers say come first: they are many
                return self._prepared(worker, generation) if worker in self.peers else []
            case Formed(worker, generation, step):
                return self._formed(worker, generation, step) if worker in self.peers else []
            case Left(worker, generation, applied):
                return self._left(worker, generation, applied) if worker in self.peers else []
            case Started(worker):
                self.peers.setdefault(worker, Peer())
                return []
            case ChangeWanted():
                return self._change(event)
            case StopWanted():
                return self._stop()
            case SaveStarted(step, generation):
                self._saving.add((step, generation))
                return []
            case SaveDecided(step, failure, generation):
                self._saving.discard((step, generation))
                if not failure:
                    self._saved, self._last_saves = max(self._saved, step), 0
                elif step >= self._unsaved[0]:
                    self._unsaved = (step, failure)
                return self._finish()
            case Stuck(reason):
                return self._recover("stuck", reason) if self.phase is Phase.TRAINING else []
            case Expired(generation):
                return self._expire(generation)
        if event.worker not in self.peers:
            return []
        peer = self.peers[event.worker]
        match event:
            case Ready(worker):
                first, peer.ready = not peer.ready, True
                return [Load((worker,))] if first and self._load and self.phase is Phase.ASSEMBLING else []
            case Loaded(_, step):
                if self.phase is not Phase.ASSEMBLING:
                    return []
                if step == (self._checkpoint or START):
                    peer.applied = step
                elif not self._load:
                    return [GiveUp(event.worker, f"it loaded the checkpoint of step {step}, and this term begins without one")]
                return []  # of an earlier term where it is another: `outstanding` says again which one is meant
            case Corrupt(_, detail):
                return [RollBack(self._checkpoint or Step(0), detail)] if self.phase is Phase.ASSEMBLING else []
            case Refused():
                return self._refused(event)
            case Ended(_, generation, outcome):
                if peer.outcome is not None and generation < peer.outcome[0]:
                    return []
                peer.outcome = (generation, outcome)
                return self._finish()
            case Gone(worker, reason, cause):
                return self._gone(worker, reason, cause)

    def _is_committed(self, generation: Generation) -> bool:
        return self.proposal is not None and self.proposal.committed is not None and self.proposal.formation.generation == generation

    def _hear_applied(self, worker: WorkerId, generation: Generation, step: Step) -> list[Action]:
        peer = self.peers.get(worker)
        if peer is not None and generation == peer.generation and peer.applied is not None and step > peer.applied:
            peer.applied = step
        return []

    # a planned change

    def _change(self, wanted: ChangeWanted) -> list[Action]:
        if not self.settled or self._done:
            return []
        before = self.current.ranks if self.current is not None else ()
        join = tuple(
            worker for worker in wanted.join if worker in self.peers and self._may_join(self.peers[worker]) and worker not in before
        )
        leaving = set(wanted.leave).intersection(before)
        if len(leaving) == len(before):
            leaving = set()  # whoever holds the state hands it over first, and leaves with the next change
        leave = tuple(worker for worker in before if worker in leaving)
        ranks = (*(worker for worker in before if worker not in leaving), *join)
        if not ranks or (not join and not leave and before and not self.held and not wanted.hold):
            return []
        hold = wanted.hold or len(ranks) < self.minimum
        return self._propose(ranks, leave, planned=True, cause=wanted.cause, reason=wanted.reason, hold=hold)

    def _propose(
        self,
        ranks: Sequence[WorkerId],
        leaving: tuple[WorkerId, ...],
        *,
        planned: bool,
        cause: str,
        reason: str,
        hold: bool,
        leave: bool = False,
    ) -> list[Action]:
        self.number = Generation(self.number + 1)
        formation = Formation(self.number, tuple(ranks))
        self.proposal = Proposal(formation, leaving, planned, cause, reason, hold)
        self.proposal.missing = set(self.proposal.everybody)
        return [Prepare(formation, leaving, self.proposal.everybody, leave)]

    def _prepared(self, worker: WorkerId, generation: Generation) -> list[Action]:
        proposal = self.proposal
        if proposal is None or proposal.committed is not None or proposal.formation.generation != generation:
            return []
        proposal.missing.discard(worker)
        return self._commit(proposal) if self._all_acknowledged(proposal) and self.phase is not Phase.LEAVING else []

    @staticmethod
    def _all_acknowledged(proposal: Proposal) -> bool:
        return not proposal.missing

    def _commit(self, proposal: Proposal) -> list[Action]:
        ranks = proposal.formation.ranks
        step = self._step_to_share(proposal)
        holders = self._donors(proposal, step)
        hold = set(holders)
        save, self._save_again = self._save_again, False
        proposal.committed = Commit(
            proposal.formation,
            proposal.leaving,
            _spread(holders, DONORS),
            tuple(rank for rank in range(len(ranks)) if rank not in hold),
            step,
            not proposal.planned,
            proposal.hold,
            save,
            proposal.everybody,
        )
        proposal.missing = set(proposal.everybody)
        return [proposal.committed]

    def _step_to_share(self, proposal: Proposal) -> Step | None:
        """The most advanced survivor has it; nobody knows it yet where the present generation goes on."""
        if self.current is not None and not self.held:
            return None
        return max((Step(self._applied(worker)) for worker in proposal.formation.ranks), default=Step(0))

    def _donors(self, proposal: Proposal, step: Step | None) -> tuple[int, ...]:
        """All ranks that hold the state; some of them send it."""
        ranks = proposal.formation.ranks
        if self.current is not None and not self.held:
            members = set(self.current.ranks)
            return tuple(rank for rank, worker in enumerate(ranks) if worker in members)
        holders = tuple(rank for rank, worker in enumerate(ranks) if self.peers[worker].applied == step)
        return holders or (0,)  # a fresh start: everybody takes what the first one built

    def _refused(self, event: Refused) -> list[Action]:
        proposal = self.proposal
        if proposal is None or proposal.committed is not None or proposal.formation.generation != event.generation:
            return []
        if not proposal.planned:
            return self._try_again(event.worker, event.detail)
        before = self.current.ranks if self.current is not None else ()
        self._attempts += 1
        blamed = [event.worker] if event.worker not in before else []
        if not blamed and self._attempts >= ATTEMPTS:
            blamed = [worker for worker in proposal.formation.ranks if worker not in before]
        return [*self._withdraw(), *(GiveUp(worker, f"it and the others could not connect: {event.detail}") for worker in blamed)]

    def _expire(self, generation: Generation) -> list[Action]:
        proposal = self.proposal
        if proposal is None or proposal.committed is not None or proposal.formation.generation != generation:
            return []
        if self.phase is Phase.LEAVING:
            self.proposal = None  # whoever does not come out is given up; then the others begin anew
            return []
        late = [worker for worker in proposal.everybody if worker in proposal.missing]
        if not proposal.planned:
            return self._try_again(late[-1], "it did not connect in time")
        before = self.current.ranks if self.current is not None else ()
        self._attempts += 1
        blamed = [worker for worker in late if worker not in before] or (late if self._attempts >= ATTEMPTS else [])
        return [*self._withdraw(), *(GiveUp(worker, "it did not connect to the others in time") for worker in blamed)]

    def _withdraw(self) -> list[Action]:
        proposal, self.proposal = self.proposal, None
        assert proposal is not None
        withdraw = Withdraw(proposal.formation.generation, tuple(worker for worker in proposal.everybody if worker in self.peers))
        return [withdraw, *(self._stop_before_training() if self.stopping and self.phase is Phase.ASSEMBLING else [])]

    def _formed(self, worker: WorkerId, generation: Generation, step: Step) -> list[Action]:
        proposal = self.proposal
        if proposal is None or not self._is_committed(generation):
            return []
        peer = self.peers[worker]
        peer.applied = step if peer.generation != generation or peer.applied is None else max(peer.applied, step)
        peer.generation = generation
        proposal.step = step
        proposal.missing.discard(worker)
        return self._complete()

    def _complete(self) -> list[Action]:
        """Once all of its members have formed it, a generation is the present one."""
        proposal = self.proposal
        assert proposal is not None
        if len(proposal.missing) > len(proposal.leaving) or not proposal.missing.issubset(proposal.leaving):
            return []  # told by the number alone nearly always
        before = self.ranks
        self.current, self.proposal, self.phase = proposal.formation, None, Phase.TRAINING
        self.held, self._attempts, self._roster, self._done, self._ended = False, 0, (), {}, 0
        assert proposal.step is not None
        self._formed_at.append((self.generation, proposal.step))
        gone = tuple(worker for worker in proposal.leaving if worker in self.peers)
        for worker in gone:
            del self.peers[worker]
        changed = Changed(proposal.formation, before, proposal.cause, proposal.reason, proposal.step, proposal.hold)
        return [changed, *([Release(gone)] if gone else []), *self._finish()]

    # a crash

    def _gone(self, worker: WorkerId, reason: str, cause: str) -> list[Action]:
        peer = self.peers.pop(worker)
        if self.phase is Phase.LEAVING:
            self._awaited.discard(worker)
            if self.proposal is not None and worker in self.proposal.formation.ranks:
                self.proposal = None
            return self._reform() if not self._awaited else []
        inside = self.current is not None and worker in self.current.ranks
        if inside and peer.outcome is not None and peer.outcome[0] == self.generation and peer.outcome[1] is not Outcome.HELD:
            self._done[worker] = peer.outcome[1]
            return self._finish()
        proposal = self.proposal
        if proposal is not None and worker in proposal.everybody:
            if proposal.committed is None and proposal.planned and not inside:
                return self._withdraw()
            return self._recover(cause, reason, at_once=proposal.committed is None)
        return self._recover(cause, reason, at_once=True) if inside else []

    def _recover(self, cause: str, reason: str, *, at_once: bool = False) -> list[Action]:
        """All out, so that what each one holds is certain; then the survivors form the next generation.

        `at_once`: the members of the present generation connect to each other while they leave it: all of them hold its state, and
        the one that was lost is known.
        """
        members = self.current.ranks if at_once and self.current is not None else ()
        involved = list(dict.fromkeys((*self.ranks, *(self.proposal.everybody if self.proposal is not None else ()))))
        living = tuple(worker for worker in involved if worker in self.peers)
        self._roster = living
        self._awaited = set(living)
        self._save_again = self._save_again or bool(self._saving)
        self._why = (cause, reason)
        self._left_up_to = self.number
        self.current, self.proposal, self.phase, self.held, self._done = None, None, Phase.LEAVING, False, {}
        abandon = AbandonSaves(self.number)
        if not living:
            return [abandon, *self._reform()]
        survivors = tuple(worker for worker in members if worker in self.peers)
        if not survivors:
            return [abandon, Leave(self.number, living)]
        staying = set(survivors)
        others = tuple(worker for worker in living if worker not in staying)
        leave = [Leave(self.number, others)] if others else []
        regroup = self._propose(survivors, (), planned=False, cause=cause, reason=reason, hold=False, leave=True)
        return [abandon, *leave, *regroup]

    def _try_again(self, worker: WorkerId, detail: str) -> list[Action]:
        self._attempts += 1
        actions = self._recover(*self._why)
        if self._attempts < ATTEMPTS:
            return actions
        self._attempts = 0
        return [*actions, GiveUp(worker, f"the survivors cannot connect to it: {detail}")]

    def _left(self, worker: WorkerId, generation: Generation, applied: Step | None) -> list[Action]:
        peer = self.peers[worker]
        if self.phase is Phase.LEAVING:
            if worker not in self._awaited or generation < self._left_up_to:
                return []
            peer.applied = applied
            self._awaited.discard(worker)
            return self._reform() if not self._awaited else []
        proposal = self.proposal
        if proposal is not None and worker in proposal.leaving and proposal.committed is not None:
            peer.applied = applied
            proposal.missing.discard(worker)
            return []
        broke = generation == self.generation or self._is_committed(generation)
        return self._recover("lost", f"worker {worker} lost its connection to the others") if broke else []

    def _reform(self) -> list[Action]:
        holders = [worker for worker in self._roster if worker in self.peers and self.peers[worker].applied is not None]
        if max((self._applied(worker) for worker in holders), default=-1) < max(self._committed, self._saved):
            self.proposal = None
            return [AllLost(self._why[1])]  # also where a newcomer holds what it loaded: that is behind what the run has
        self.phase = Phase.FORMING
        cause, reason = self._why
        hold = len(holders) < self.minimum and not self.stopping
        begun = self.proposal
        if begun is not None and begun.formation.ranks == tuple(holders):
            begun.hold = hold
            return self._commit(begun) if self._all_acknowledged(begun) else []
        return self._propose(holders, (), planned=False, cause=cause, reason=reason, hold=hold)

    # the end

    def _stop(self) -> list[Action]:
        if self.stopping:
            return []
        self.stopping = True
        if self.phase is Phase.ASSEMBLING and self.proposal is None:
            return self._stop_before_training()
        return [Stop(tuple(self.peers)), *self._finish()]

    def _stop_before_training(self) -> list[Action]:
        return self._end(JobState.STOPPED, "stopped while no worker trained", ExitCode.STOPPED)

    def _finish(self) -> list[Action]:
        """The end, if everybody has come to it."""
        if self.current is None or self.phase is not Phase.TRAINING or self._saving:
            return []
        ranks = self.current.ranks
        while self._ended < len(ranks) and (ranks[self._ended] not in self.peers or self._outcome(ranks[self._ended]) is not None):
            self._ended += 1
        if self._ended < len(ranks):
            return []
        outcomes = {*self._done.values(), *(self._outcome(worker) for worker in ranks if worker in self.peers)}
        if None in outcomes:
            return []  # who had ended here has come to the end of the next generation already
        if Outcome.HELD in outcomes:
            self.held = True
            return self._end(JobState.STOPPED, "stopped on request", ExitCode.STOPPED) if self.stopping else []
        step, failure = self._unsaved
        if step > self._saved and (self._done or self._last_saves < ATTEMPTS):
            # Whoever is left has all of the state. A part may have gone with the member that had it: then the store is not to blame.
            self._last_saves += not self._done
            self._save_again = True
            return self._recover("save", f"the last checkpoint could not be saved: {failure}")
        if step > self._saved:
            return self._end(JobState.FAILED, f"the last checkpoint could not be saved: {failure}", ExitCode.INFRASTRUCTURE)
        if outcomes == {Outcome.FINISHED}:
            return self._end(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)
        return self._end(JobState.STOPPED, "stopped on request", ExitCode.STOPPED)

    def _outcome(self, worker: WorkerId) -> Outcome | None:
        outcome = self.peers[worker].outcome
        return outcome[1] if outcome is not None and outcome[0] == self.generation else None

    def fail(self, reason: str, exit_code: ExitCode) -> list[Action]:
        """Break off: whoever is in a collective is let out."""
        if self.phase is Phase.ENDED:
            return []
        return [Leave(self.number, tuple(self.peers)), *self._end(JobState.FAILED, reason, exit_code)]

    def _end(self, state: JobState, reason: str, exit_code: ExitCode) -> list[Action]:
        self.phase = Phase.ENDED
        return [End(state, reason, exit_code)]


def _spread(ranks: tuple[int, ...], most: int) -> tuple[int, ...]:
    """`most` of them, evenly: neighbours in rank share a node's connection."""
    return ranks if len(ranks) <= most else tuple(ranks[index * len(ranks) // most] for index in range(most))
