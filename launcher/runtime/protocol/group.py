"""The worker group of one term, as the controller knows it: who is there, which generation is at work, which change is under way. Pure.

ASSEMBLING   no generation was formed yet: workers start, warm up and, where there is a checkpoint, load it
TRAINING     a generation is at work; a change of it may be prepared or committed meanwhile (`proposal`)
LEAVING      a member is lost: all others were told to leave, and their answers are awaited; they may connect to each other meanwhile
FORMING      the survivors form the next generation
ENDED        nothing more follows

forming.py, recovery.py and ending.py change it, event by event; coordinator.py says which of them an event concerns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, WorkerId
from launcher.record.status import JobState
from launcher.runtime.protocol.events import NONE, Action, Commit, End, Formation, Outcome

START = Step(0)


class Phase(Enum):
    ASSEMBLING = "assembling"
    TRAINING = "training"
    LEAVING = "leaving"
    FORMING = "forming"
    ENDED = "ended"


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


class Group:
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
        """The highest generation number that was ever used."""
        self.load = load
        self.checkpoint = checkpoint
        # A recovery.
        self.unanswered: set[WorkerId] = set()
        """Those that have not said that they left."""
        self.left_up_to = NONE
        """The generation up to which they were told to leave."""
        self.survivors: tuple[WorkerId, ...] = ()
        """Who may hold the state while there is no generation, in the order of the ranks they had."""
        self.cause = ("", "")
        """Of the recovery under way, and its reason."""
        self.attempts = 0
        """To form the generation under way, without success."""
        # The end.
        self.done: dict[WorkerId, Outcome] = {}
        """Members of the present generation that did their part in it before they were gone."""
        self.ended_below = 0
        """All ranks of the present generation below this one had ended, so that the others need not be asked."""
        # Checkpoints.
        self.formed_at: list[tuple[Generation, Step]] = []
        """Of this term's generations, with which step each began."""
        self.saving: set[tuple[Step, Generation]] = set()
        self.saved = checkpoint or START
        self.unsaved = (START, "")
        """The newest checkpoint that failed, and why; it matters until one of that step or a later one is committed."""
        self.save_again = False
        self.last_saves = 0
        """How often the end was put off, to save once more what could not be saved."""
        self._committed = recorded

    @property
    def generation(self) -> Generation:
        return self.current.generation if self.current is not None else NONE

    @property
    def ranks(self) -> tuple[WorkerId, ...]:
        """The members of the present generation, by rank; while there is none, those that may hold the state."""
        return self.current.ranks if self.current is not None else tuple(each for each in self.survivors if each in self.peers)

    @property
    def settled(self) -> bool:
        """A change may be begun."""
        return self.phase in (Phase.ASSEMBLING, Phase.TRAINING) and self.proposal is None and not self.stopping

    @property
    def committed(self) -> Step:
        """Every member of the newest generation is known to hold this step."""
        if self.phase is Phase.TRAINING and self.current is not None:
            least = min((self.applied(worker) for worker in self.current.ranks), default=0)
            self._committed = max(self._committed, Step(least))
        return self._committed

    @property
    def awaited(self) -> tuple[WorkerId, ...]:
        """Those that were told to leave and have not said that they did."""
        return tuple(worker for worker in self.survivors if worker in self.unanswered) if self.phase is Phase.LEAVING else ()

    @property
    def warm(self) -> list[WorkerId]:
        """Those that may join: warm, with the checkpoint loaded where there is no generation to take the state from."""
        inside = {*self.ranks, *(self.proposal.everybody if self.proposal is not None else ())}
        return [worker for worker, peer in self.peers.items() if worker not in inside and self.may_join(peer)]

    def may_join(self, peer: Peer) -> bool:
        return peer.ready and (peer.applied is not None or not self.load or self.phase is not Phase.ASSEMBLING)

    def applied(self, worker: WorkerId) -> int:
        """Steps applied in the state that a worker holds; 0 where it holds none."""
        peer = self.peers.get(worker)
        return peer.applied if peer is not None and peer.applied is not None else 0

    def on_line(self, step: Step, generation: Generation) -> bool:
        """Whether this generation's step is one that later generations go on from; else it was rolled back and computed again."""
        return all(step <= start for later, start in self.formed_at if later > generation)

    def is_committed(self, generation: Generation) -> bool:
        """Whether this generation is the one under way, and irrevocable."""
        return self.proposal is not None and self.proposal.committed is not None and self.proposal.formation.generation == generation

    def end(self, state: JobState, reason: str, exit_code: ExitCode) -> list[Action]:
        self.phase = Phase.ENDED
        return [End(state, reason, exit_code)]

    def stop_before_training(self) -> list[Action]:
        return self.end(JobState.STOPPED, "stopped while no worker trained", ExitCode.STOPPED)
