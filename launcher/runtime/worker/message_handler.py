"""What a message to a worker means: to the Participant, and for what the worker does. Pure: runs in the worker, and in the simulation.

Nothing here waits, has a thread or reads a clock: whoever calls serialises all calls, and `Effects` does what takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from launcher.core.types import Generation, Step, Term
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol import participant as p


class Effects(Protocol):
    """What a worker does. Nothing of it may take long."""

    def say(self, message: m.ToController) -> None: ...

    # the process groups

    def connect(self, assignment: p.Assignment) -> None:
        """Form the group in the background; `connected` or `could_not_connect` follows."""
        ...

    def discard(self, generation: Generation) -> None:
        """Leave the group that is being formed, or was formed and not entered."""
        ...

    def cut(self) -> None:
        """Make the main thread leave its collective."""
        ...

    def value(self, value: m.Value) -> None:
        """A key of a group's rendezvous is set."""
        ...

    # the main thread

    def load(self, order: m.Load) -> None:
        """Restore a checkpoint; `loaded` follows. A later order replaces one that was not begun."""
        ...

    def stop(self) -> None:
        """Stop after a step."""
        ...

    def finish(self) -> None:
        """End, once nothing is left to upload."""
        ...

    # what is kept

    def send_records(self) -> None:
        """Say every row and evaluation again that is not known to be durable."""
        ...

    def forget_records(self, step: Step) -> None:
        """They are durable through `step`."""
        ...

    def forget_save(self, step: Step, generation: Generation) -> None:
        """A checkpoint is committed or abandoned."""
        ...

    # the controller

    def term_began(self, term: Term) -> None:
        """The controller goes on under this term."""
        ...

    def evicted(self) -> None:
        """This worker ends at once."""
        ...


class MessageHandler:
    def __init__(self, participant: p.Participant, effects: Effects) -> None:
        self._me, self._effects = participant, effects
        self._connect_s: dict[Generation, float | None] = {}
        """Of groups that are formed and not entered yet."""
        self._entered_with: float | None = None
        """Seconds to connect, of the generation that it is or was last in."""
        self._move_s: float | None = None
        self._pause_s: float | None = None
        self._load: m.Load | None = None
        """The newest order to load."""
        self._loaded: m.Loaded | m.Corrupt | None = None
        """What came of it."""

    def receive(self, message: m.ToWorker) -> None:
        match message:
            case m.Prepare(generation, rank, world_size, leave):
                self.carry_out(self._me.prepare(p.Assignment(generation, rank, world_size), leave=leave))
            case m.Commit():
                self.carry_out(self._me.commit(_committed(message)))
            case m.Withdraw(generation):
                self.carry_out(self._me.withdraw(generation))
            case m.Leave(generation):
                self.carry_out(self._me.leave(generation))
            case m.Release():
                self.carry_out(self._me.release())
            case m.Stop():
                self._effects.stop()
            case m.Load():
                self._ordered_to_load(message)
            case m.SendRecords():
                self._effects.send_records()
            case m.Durable(step):
                self._effects.forget_records(step)
            case m.CheckpointDecided(step, generation):
                self._effects.forget_save(step, generation)
            case m.TermBegan(term):
                self._effects.term_began(term)
            case m.Value():
                self._effects.value(message)
            case m.Evicted():
                self._effects.evicted()
            case m.Kept():
                pass  # the answer to a question that is asked over a connection of its own
            case _:
                assert_never(message)

    def carry_out(self, actions: Sequence[p.Action]) -> None:
        """In order."""
        for action in actions:
            match action:
                case p.Connect(assignment):
                    self._effects.connect(assignment)
                case p.Discard(generation):
                    self._connect_s.pop(generation, None)
                    self._effects.discard(generation)
                case p.CutOff():
                    self._effects.cut()
                case p.SayPrepared(generation):
                    self._effects.say(m.Prepared(generation, self._connect_s.get(generation)))
                case p.SayRefused(generation, detail):
                    self._effects.say(m.Refused(generation, detail))
                case p.SayFormed(generation, step):
                    self._effects.say(m.Formed(generation, step, self._entered_with, self._move_s, self._pause_s))
                case p.SayLeft(generation, applied):
                    self._effects.say(m.Left(generation, applied))
                case p.SayEnded(generation, outcome):
                    assert self._me.applied is not None, "nothing ends without a state"
                    self._effects.say(m.Ended(generation, self._me.applied, outcome))
                case p.Finish():
                    self._effects.finish()
                case _:
                    assert_never(action)

    # what the background found

    def connected(self, generation: Generation, connect_s: float | None = None) -> None:
        self._connect_s[generation] = connect_s
        self.carry_out(self._me.connected(generation))

    def could_not_connect(self, generation: Generation, detail: str) -> None:
        self.carry_out(self._me.could_not_connect(generation, detail))

    # what the main thread does

    def enter(self) -> p.CommittedAssignment:
        """Into the generation that waits (`Participant.may_enter`)."""
        committed = self._me.enter()
        self._entered_with, self._move_s, self._pause_s = self._connect_s.pop(committed.generation, None), None, None
        return committed

    def holds(self, step: Step, *, move_s: float | None = None, pause_s: float | None = None) -> None:
        """The generation's state is there, after so many seconds since it was entered, and since this worker's last step."""
        self._move_s, self._pause_s = move_s, pause_s
        self.carry_out(self._me.holds(step))

    def loaded(self, order: m.Load, result: m.Loaded | m.Corrupt) -> None:
        if isinstance(result, m.Loaded):
            self._me.applies(result.step)
        if order == self._load:
            self._loaded = result
        self._effects.say(result)

    def _ordered_to_load(self, order: m.Load) -> None:
        """An order that is being carried out is not begun again, and one that was is answered again."""
        if order != self._load:
            self._load, self._loaded = order, None
            self._effects.load(order)
        elif self._loaded is not None:
            self._effects.say(self._loaded)


def _committed(commit: m.Commit) -> p.CommittedAssignment:
    return p.CommittedAssignment(
        commit.generation, commit.donors, commit.receivers, commit.step, commit.again, hold=commit.hold, save=commit.save
    )
