"""How long each part of the change under way took, and what changes and starts have cost so far. Runs in the controller process."""

from __future__ import annotations

from dataclasses import replace

from launcher.core.clock import Clock
from launcher.core.types import Generation, Step, WorkerId
from launcher.record.events import Resized
from launcher.runtime.policies.views import MeasuredCosts
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Changed
from launcher.runtime.records.resize_timing import ResizeTiming
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter

LOSSES = ("lost", "evicted", "error")
"""Causes of a change that began with a loss."""
WARM_STEPS = 3
"""So many steps have to be done beside newcomers that warm up before anything is concluded from them."""


class ResizeTracker:
    """All times are monotonic seconds."""

    def __init__(self, recorder: RunRecorder, status: StatusWriter, clock: Clock) -> None:
        self._recorder, self._status, self._clock = recorder, status, clock
        self._timing: ResizeTiming | None = None
        """Of the change under way."""
        self._warming: tuple[float, int, float] | None = None
        """While newcomers warm up: since when, at which step, and what a step took before."""
        self._slowdown: float | None = None
        self.costs = MeasuredCosts()

    @property
    def begun_at(self) -> float | None:
        """Of the change under way."""
        return self._timing.begun_at if self._timing is not None else None

    # a change begins

    def wanted(self, cause: str, reason: str, begun_at: float, before: tuple[WorkerId, ...], *, joins: bool) -> None:
        """A policy wants another membership."""
        self._timing = ResizeTiming(cause=cause, reason=reason, begun_at=begun_at, before=before)
        if joins:
            self._timing.slowdown, self._slowdown = self._slowdown, None

    def lost(self, cause: str, reason: str, before: tuple[WorkerId, ...], detect_s: float | None) -> None:
        """A member of the generation at work is gone."""
        self._timing = ResizeTiming(cause=cause, reason=reason, begun_at=self._clock.monotonic(), before=before, detect_s=detect_s)

    def lost_meanwhile(self, cause: str, reason: str) -> None:
        """One more is gone while a change is under way: that is what it is called from now on."""
        if self._timing is not None:
            self._timing.cause, self._timing.reason = cause, reason

    def broke_off(self, before: tuple[WorkerId, ...]) -> None:
        """The group is told to leave its generation; the survivors may say so before the loss itself is noticed."""
        if self._timing is None or self._timing.cause not in LOSSES:
            self.lost("lost", "workers lost each other", before, None)

    def dropped(self) -> None:
        """The change came to nothing."""
        self._timing = None

    # a change goes on

    def committed(self, generation: Generation) -> None:
        if self._timing is not None:
            self._timing.committed(generation, self._clock.monotonic())

    def formed_by(self, worker: WorkerId, formed: m.Formed) -> None:
        if self._timing is not None and formed.generation == self._timing.generation:
            self._timing.formed_by(worker, formed)

    def changed(self, changed: Changed) -> None:
        """All members have formed the generation."""
        now = self._clock.monotonic()
        if self._timing is None:
            self._timing = ResizeTiming(cause=changed.cause, reason=changed.reason, begun_at=now, before=changed.before)
        self._timing.formed(changed.formation.generation, changed.formation.ranks, changed.step, now, hold=changed.hold)
        self._tell_if_complete()

    def stepped(self, worker: WorkerId, generation: Generation) -> None:
        """A worker did its first step in a generation."""
        if self._timing is not None:
            self._timing.stepped(worker, generation, self._clock.monotonic())
            self._tell_if_complete()

    def _tell_if_complete(self) -> None:
        if self._timing is not None and self._timing.complete:
            self.tell()

    def tell(self) -> None:
        """Record how long each part of the change took, as far as that is known."""
        timing, self._timing = self._timing, None
        if timing is None or not timing.before or timing.generation is None or timing.step is None or timing.formed_at is None:
            return
        facts = timing.facts()
        self._recorder.event(Resized(**{name: getattr(facts, name) for name in facts.__struct_fields__}))
        self._status.resized(facts, timing.generation, timing.step)
        if facts.pause_s is not None:
            grew = len(timing.after) > len(timing.before)
            self.costs = replace(self.costs, grow_s=facts.pause_s) if grew else replace(self.costs, shrink_s=facts.pause_s)

    # what starts and checkpoints cost

    def newcomers_asked_for(self, committed: Step, step_s: float | None) -> None:
        """Newcomers start beside a generation at work."""
        if self._warming is None and step_s is not None:
            self._warming = (self._clock.monotonic(), committed, step_s)

    def newcomer_ready(self, committed: Step) -> None:
        if self._warming is None:
            return
        (since, step, step_s), self._warming = self._warming, None
        now, done = self._clock.monotonic(), committed - step
        if done >= WARM_STEPS and now > since:
            self._slowdown = min(1.0, done / (now - since) * step_s)
            self.costs = replace(self.costs, warm_up_s=(1.0 - self._slowdown) * (now - since))

    def saved(self, seconds: float) -> None:
        """What a worker took to save its part of a checkpoint."""
        self.costs = replace(self.costs, save_s=seconds)
