"""Attending a job: what a person sees from the submit to the end. The command only watches the store; the job is not its child."""

from __future__ import annotations

import json
import sys
from typing import Literal

import click

from launcher import jobs
from launcher.cli.render import command, event_line, hints, log_line, summary
from launcher.cli.screen import Screen, colour_wanted, open_screen
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.store import is_local
from launcher.jobs.records import event_reader, log_reader
from launcher.jobs.refs import RunRef
from launcher.record.status import RunStatus, exit_code_of

Output = Literal["text", "json"]
QUIET_KINDS = frozenset({"steps", "generation_prepared"})
"""Events that progress, or the event of the change that they lead to, shows already."""
_PATIENCE = 20


def submitted(ref: RunRef, *, output: Output) -> int:
    """Say what was submitted and how to go on; for a detached job."""
    if output == "json":
        print_json(jobs.status(ref))
    else:
        _echo(hints(ref))
    return ExitCode.SUCCEEDED


def follow(ref: RunRef, *, output: Output, fresh: bool = True, clock: Clock | None = None) -> int:
    """Show a job until it ends and return the exit code that its final state asks for; 130 when it is left running.

    With output "json" stdout gets one object, the last status, and everything else goes to stderr. `fresh` off leaves
    out what was recorded before: for a run that goes on.
    """
    clock = clock or SystemClock()
    stream = sys.stderr if output == "json" else sys.stdout
    click.echo(hints(ref), file=stream, color=colour_wanted(stream))
    attendance = Attendance(ref, open_screen(stream, clock), clock, fresh=fresh)
    try:
        final = attendance.until_end()
    finally:
        attendance.screen.close()
    if final is not None:
        click.echo(summary(final, ref), file=stream, color=colour_wanted(stream))
    if output == "json" and (last := final or attendance.last) is not None:
        print_json(last)
    if final is None:
        return ExitCode.INTERRUPTED
    return final.exit_code if final.exit_code is not None else exit_code_of(final.state)


class Attendance:
    """A person watching a job: reads what is new, shows it, and answers Ctrl-C."""

    def __init__(self, ref: RunRef, screen: Screen, clock: Clock, *, fresh: bool) -> None:
        run = ref.open()
        self.ref = ref
        self.screen = screen
        self.last: RunStatus | None = None
        self._clock = clock
        self._events = event_reader(run)
        self._logs = log_reader(run)
        self._dashboard_said = False
        self._stopping = False
        self._failures = 0
        if not fresh:
            self._events.skip()
            self._logs.skip()

    def until_end(self) -> RunStatus | None:
        """The final status; None when the person left."""
        while True:
            try:
                return self._attend()
            except KeyboardInterrupt:
                if not self._stays():
                    return None
            except StoreUnavailable as error:  # an outage of the store says nothing about the job
                self._failures += 1
                if self._failures >= _PATIENCE:
                    raise
                self.screen.line(f"{error.what}; the job is not touched by that, trying again")
                self._clock.sleep(2.0)

    def _attend(self) -> RunStatus:
        for status in jobs.watch(self.ref, interval_s=0.5 if is_local(self.ref.runs) else 2.0, clock=self._clock):
            self._failures = 0
            self.last = status
            self._say_new(status)
            self.screen.show(status)
        return status

    def _say_new(self, status: RunStatus) -> None:
        for line in self._logs.new():
            self.screen.line(log_line(line))
        for recorded in self._events.new():
            if recorded.kind not in QUIET_KINDS:
                self.screen.line(event_line(recorded))
        if status.dashboard and not self._dashboard_said:
            self._dashboard_said = True
            self.screen.line(f"dashboard: {status.dashboard}  ({command('dashboard', self.ref)} says where its token is)")

    def _stays(self) -> bool:
        """Answer to Ctrl-C: whether to go on attending."""
        if self._stopping or not (sys.stdin.isatty() and sys.stderr.isatty()):
            self._say_left()
            return False
        with self.screen.pause():
            answer = _ask(self.ref)
        if answer == "detach":
            self._say_left()
            return False
        if answer == "stop":
            self._stopping = True
            self.screen.line(f"stopping {self.ref.name}; Ctrl-C again leaves it to itself")
            try:
                jobs.stop(self.ref, clock=self._clock)
            except KeyboardInterrupt:
                self._say_left()
                return False
        return True

    def _say_left(self) -> None:
        state = "is stopping" if self._stopping else "keeps running"
        self.screen.line(f"{self.ref.name} {state}. Come back: {command('logs', self.ref, '-f')}; end it: {command('stop', self.ref)}")


def _ask(ref: RunRef) -> Literal["stop", "detach", "stay"]:
    """A second Ctrl-C is an answer too: stop."""
    try:
        answer = click.prompt(
            f"\n{ref.name}: [s]top it, [d]etach and let it run, or [c]ontinue to watch? (Ctrl-C stops it)",
            type=click.Choice(["s", "d", "c"]),
            default="d",
            show_choices=False,
            err=True,
        )
    except (click.Abort, KeyboardInterrupt):
        return "stop"
    return {"s": "stop", "d": "detach", "c": "stay"}[answer]  # type: ignore[return-value]


def print_json(status: RunStatus) -> None:
    """One object on one line of standard output."""
    click.echo(json.dumps(status.to_json(), allow_nan=False))


def _echo(text: str) -> None:
    click.echo(text, color=colour_wanted(sys.stdout))
