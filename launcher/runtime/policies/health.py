"""Who is evicted, from heartbeats: the silent, the hung, a tie of all, and who was told to leave and does not answer. Pure.

Times are handed in, as seconds of one monotonic clock, the controller's. Hung is not dead: a worker whose beats
come is evicted only for keeping others waiting, and where all wait for each other nobody is to blame.

Where this ends: a heartbeat is a sample, so that times are right to within its interval; members of which none waits
(all of them read data that does not come) keep nobody waiting and are left alone; and a controller that itself never
gets to look within `jump_s` condemns nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.core.types import Generation, Step, WorkerId

BUILDING = frozenset({"building", "loading"})
"""Phases in which imports, the user's own code or reading data may hold the interpreter, and with it the heartbeat."""
SLOW = frozenset({"saving", "evaluating"})
"""Phases that may long be without a training step, and wait for storage."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    silence_s: float
    """How long a worker may be silent; the longer of this and `silence_steps` steps."""
    silence_steps: float = 6.0
    building_s: float = 60.0
    """Silence that is allowed in a phase of BUILDING."""
    hang_s: float
    """How long a worker may keep the others waiting; the longer of this and `hang_steps` steps."""
    hang_steps: float = 20.0
    slow_factor: float = 10.0
    """Hangs take so many times longer to show in a phase of SLOW."""
    jump_s: float = 2.0
    """Looking later than this after the last look means that the controller stood still, and nothing about the workers."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    generation: Generation
    applied: Step
    progress: int
    """Forward passes since the worker began."""
    waiting: bool
    """The main thread is inside a collective: it waits for others."""
    busy_s: float
    phase: str


@dataclass(frozen=True)
class Silent:
    """Nothing is heard of the worker."""

    worker: WorkerId
    seconds: float
    limit: float

    @property
    def reason(self) -> str:
        return f"worker {self.worker} has been silent for {self.seconds:.1f} s (limit {self.limit:g} s)"


@dataclass(frozen=True)
class Hung:
    """The worker lives, does nothing, and keeps others waiting."""

    worker: WorkerId
    seconds: float
    limit: float

    @property
    def reason(self) -> str:
        return f"worker {self.worker} has kept the others waiting for {self.seconds:.1f} s without a forward pass (limit {self.limit:g} s)"


@dataclass(frozen=True)
class Tie:
    """All members wait inside a collective: all have to leave it, and who answers shows who is well."""

    workers: tuple[WorkerId, ...]
    seconds: float
    limit: float

    @property
    def reason(self) -> str:
        who = f"all {len(self.workers)} workers have" if len(self.workers) > 1 else f"worker {self.workers[0]} has"
        return f"{who} been waiting inside a collective for {self.seconds:.1f} s without a forward pass (limit {self.limit:g} s)"


@dataclass(frozen=True)
class Unanswered:
    """The worker was told to leave its collective and has not said that it did."""

    worker: WorkerId
    seconds: float
    limit: float

    @property
    def reason(self) -> str:
        return (
            f"worker {self.worker} was told to leave its collective {self.seconds:.1f} s ago and has not answered (limit {self.limit:g} s)"
        )


Verdict = Silent | Hung | Tie | Unanswered


@dataclass
class _Signs:
    """What is known of one worker's life. The *_at are monotonic seconds."""

    heard_at: float
    changed_at: float
    """The newest of: a forward pass more, another phase, the main thread went into or came out of a collective."""
    asked_at: float | None = None
    """Since when it owes an answer."""
    beat: Beat | None = None

    @property
    def waiting(self) -> bool:
        return self.beat is not None and self.beat.waiting

    def credit(self, gap: float, now: float) -> None:
        self.heard_at = min(self.heard_at + gap, now)
        self.changed_at = min(self.changed_at + gap, now)
        if self.asked_at is not None:
            self.asked_at = min(self.asked_at + gap, now)


class Health:
    """The verdicts are repeated at every look until the worker is forgotten; a tie until its members are `asked`."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._signs: dict[WorkerId, _Signs] = {}
        self._members: frozenset[WorkerId] = frozenset()
        self._formed_at = 0.0
        self._step_s = 0.0
        self._looked_at: float | None = None

    def heard(self, worker: WorkerId, beat: Beat | None, now: float) -> None:
        """A heartbeat came, or (None) any other message: that is a sign of life too."""
        signs = self._signs.get(worker)
        if signs is None:
            signs = self._signs[worker] = _Signs(now, now)
        signs.heard_at = now
        if beat is None:
            return
        before, signs.beat = signs.beat, beat
        if before is None or (before.progress, before.phase, before.waiting) != (beat.progress, beat.phase, beat.waiting):
            signs.changed_at = now

    def formed(self, members: Iterable[WorkerId], now: float) -> None:
        """These are a generation from now on; its first step may take long, so nothing before counts against them."""
        self._members = frozenset(members)
        self._formed_at = now
        for worker in self._members:
            self.answered(worker)  # or it would not be among them

    def asked(self, workers: Iterable[WorkerId], now: float) -> None:
        """These were told to leave their collective and owe an answer; one that owes one already keeps its time."""
        for worker in workers:
            signs = self._signs.get(worker)
            if signs is not None and signs.asked_at is None:
                signs.asked_at = now

    def answered(self, worker: WorkerId) -> None:
        signs = self._signs.get(worker)
        if signs is not None:
            signs.asked_at = None

    def forget(self, worker: WorkerId) -> None:
        """It ended, or was evicted: nothing more is expected of it."""
        self._signs.pop(worker, None)
        self._members -= {worker}

    def step_time(self, seconds: float) -> None:
        """What a step takes at present; the limits follow it."""
        self._step_s = seconds

    def verdicts(self, now: float) -> tuple[Verdict, ...]:
        """What has to be concluded by now; to be called several times a second."""
        self._forgive_own_absence(now)
        silent = tuple(self._silent(now))
        lost = {verdict.worker for verdict in silent}
        due = tuple(verdict for verdict in self._answers_due(now) if verdict.worker not in lost)
        return (*silent, *due, *(self._stuck(now) if not lost else ()))

    def _forgive_own_absence(self, now: float) -> None:
        """While the controller was suspended or starved it heard nobody: the gap is credited to everyone."""
        gap = now - self._looked_at if self._looked_at is not None else 0.0
        self._looked_at = now
        if gap > self._patience.jump_s:
            self._formed_at = min(self._formed_at + gap, now)
            for signs in self._signs.values():
                signs.credit(gap, now)

    def _silent(self, now: float) -> Iterator[Silent]:
        usual = self._silence_limit
        for worker, signs in self._signs.items():
            building = signs.beat is None or signs.beat.phase in BUILDING
            limit = max(self._patience.building_s, usual) if building else usual
            if now - signs.heard_at > limit:
                yield Silent(worker, now - signs.heard_at, limit)

    def _answers_due(self, now: float) -> Iterator[Unanswered]:
        for worker, signs in self._signs.items():
            if signs.asked_at is None:
                continue
            # Out of a collective it comes at once; out of a forward pass (a compilation, a checkpoint) when that is done.
            limit = self._silence_limit if signs.waiting else self._hang_limit(signs)
            if now - signs.asked_at > limit:
                yield Unanswered(worker, now - signs.asked_at, limit)

    def _stuck(self, now: float) -> tuple[Hung, ...] | tuple[Tie]:
        members = {worker: self._signs[worker] for worker in sorted(self._members) if worker in self._signs}
        waiting = [signs for signs in members.values() if signs.waiting]
        if not waiting or any(signs.asked_at is not None for signs in members.values()):
            return ()
        if len(waiting) == len(members):
            since = max(self._formed_at, *(signs.changed_at for signs in waiting))
            limit = max(self._hang_limit(signs) for signs in waiting)
            return (Tie(tuple(members), now - since, limit),) if now - since > limit else ()
        return self._hung(members, min(signs.changed_at for signs in waiting), now)

    def _hung(self, members: dict[WorkerId, _Signs], waited_since: float, now: float) -> tuple[Hung, ...]:
        hung: dict[WorkerId, tuple[tuple[int, int], Hung]] = {}
        for worker, signs in members.items():
            if signs.beat is None or signs.waiting:
                continue
            since = max(self._formed_at, waited_since, signs.changed_at)
            limit = self._hang_limit(signs)
            if now - since > limit:
                hung[worker] = (signs.beat.applied, signs.beat.progress), Hung(worker, now - since, limit)
        # Whoever is ahead may itself be held up by the one behind: that one first, the others after another limit.
        lowest = min((count for count, _ in hung.values()), default=(0, 0))
        return tuple(verdict for count, verdict in hung.values() if count == lowest)

    @property
    def _silence_limit(self) -> float:
        return max(self._patience.silence_s, self._patience.silence_steps * self._step_s)

    def _hang_limit(self, signs: _Signs) -> float:
        limit = max(self._patience.hang_s, self._patience.hang_steps * self._step_s)
        return limit * self._patience.slow_factor if signs.beat is not None and signs.beat.phase in SLOW else limit
