"""How long a change of the group took, part by part: detect, agree, form, move the state, first step; and the pause that it cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.core.types import Generation, Step, WorkerId
from launcher.record.members import ResizeFacts
from launcher.runtime.protocol.messages import Formed


@dataclass(kw_only=True)
class ResizeTiming:
    """One change, from the request or the fault to the first step of the new generation. Moments are the controller's monotonic seconds."""

    cause: str
    reason: str
    begun_at: float
    """When it was asked for, or noticed."""
    before: tuple[WorkerId, ...]
    detect_s: float | None = None
    """From the last sign of life of the one who was lost to the notice."""
    slowdown: float | None = None
    """Steps a second while newcomers warmed up / before."""
    generation: Generation | None = None
    committed_at: float | None = None
    formed_at: float | None = None
    first_at: float | None = None
    after: tuple[WorkerId, ...] = ()
    step: Step | None = None
    hold: bool = False
    connect_s: dict[WorkerId, float] = field(default_factory=dict)
    move_s: dict[WorkerId, float] = field(default_factory=dict)
    pause_s: dict[WorkerId, float] = field(default_factory=dict)
    _first: set[WorkerId] = field(default_factory=set)
    _last_first_at: float | None = None

    def committed(self, generation: Generation, now: float) -> None:
        self.generation, self.committed_at = generation, now

    def formed_by(self, worker: WorkerId, formed: Formed) -> None:
        """What a worker says of its own part."""
        for place, seconds in ((self.connect_s, formed.connect_s), (self.move_s, formed.move_s), (self.pause_s, formed.pause_s)):
            if seconds is not None:
                place[worker] = seconds

    def formed(self, generation: Generation, after: tuple[WorkerId, ...], step: Step, now: float, *, hold: bool) -> None:
        self.generation, self.after, self.step, self.formed_at, self.hold = generation, after, step, now, hold

    def stepped(self, worker: WorkerId, generation: Generation, now: float) -> None:
        """A worker did its first step in the new generation. It may be heard before another one says that it has formed it."""
        if generation == self.generation:
            self._first.add(worker)
            self._last_first_at = now

    @property
    def complete(self) -> bool:
        """All that will be known is known."""
        if self.formed_at is None:
            return False
        if not self.hold and self._first >= set(self.after):
            self.first_at = self._last_first_at
        return self.hold or self.first_at is not None

    @property
    def worst_pause_s(self) -> float | None:
        """Of the survivors; None where nobody said it."""
        return max((pause for worker, pause in self.pause_s.items() if worker in self.before), default=None)

    def facts(self) -> ResizeFacts:
        form_s = max(self.connect_s.values(), default=None)
        agree_s = self.committed_at - self.begun_at if self.committed_at is not None else None
        end = self.first_at if self.first_at is not None else self.formed_at if self.hold else None
        return ResizeFacts(
            cause=self.cause,
            reason=self.reason,
            from_size=len(self.before),
            to_size=len(self.after),
            detect_s=_rounded(self.detect_s),
            agree_s=_rounded(max(0.0, agree_s - (form_s or 0.0)) if agree_s is not None else None),
            form_s=_rounded(form_s),
            move_s=_rounded(max(self.move_s.values(), default=None)),
            first_step_s=_rounded(self.first_at - self.formed_at if self.first_at is not None and self.formed_at is not None else None),
            total_s=_rounded(end - self.begun_at + (self.detect_s or 0.0) if end is not None else None),
            pause_s=_rounded(self.worst_pause_s),
            slowdown=_rounded(self.slowdown),
            joined=tuple(worker for worker in self.after if worker not in self.before),
            left=tuple(worker for worker in self.before if worker not in self.after),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
