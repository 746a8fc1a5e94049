"""What a controller has to hear, also one that comes later: kept until a controller says that it is no longer needed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from launcher.core.types import Generation, Step
from launcher.runtime.protocol.messages import Draining, Error, Saved, SaveFailed, ToController

Lasting = Saved | SaveFailed | Error | Draining


@dataclass(frozen=True, slots=True)
class _Kept:
    message: Lasting
    said: float
    """On the monotonic clock, in seconds."""
    save: tuple[Step, Generation] | None
    """The checkpoint that it is about."""


class Outbox:
    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    def said(self, message: ToController, now: float) -> None:
        """`now`: seconds on the monotonic clock. A message of another type than `Lasting` is not kept."""
        if isinstance(message, Lasting):
            self._kept.append(_Kept(message, now, _save(message)))

    def messages(self, now: float) -> list[Lasting]:
        """All that has to be said to another controller; of a deadline, what is left of it."""
        return [_aged(kept.message, now - kept.said) for kept in self._kept]

    def forget_save(self, step: Step, generation: Generation) -> None:
        """A checkpoint is committed or abandoned."""
        self._kept = [kept for kept in self._kept if kept.save != (step, generation)]

    @property
    def undecided(self) -> tuple[tuple[Step, Generation], ...]:
        """Checkpoints of which a part is stored, and of which no controller has said what became of them."""
        return tuple(kept.save for kept in self._kept if isinstance(kept.message, Saved) and kept.save is not None)


def _aged(message: Lasting, seconds: float) -> Lasting:
    if not isinstance(message, Draining):
        return message
    return msgspec.structs.replace(message, deadline_s=max(0.0, message.deadline_s - seconds))


def _save(message: Lasting) -> tuple[Step, Generation] | None:
    match message:
        case Saved():
            part = message.part
            return part.step, part.generation
        case SaveFailed(step, generation):
            return step, generation
        case _:
            return None
