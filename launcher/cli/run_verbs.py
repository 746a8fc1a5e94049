"""The verbs about runs that exist: ls, status, logs, events, resize, stop, resume, dashboard.

`-o json` prints one JSON value on stdout, and one object a line for logs and events, whose end may never come. The
exit code of `status` says whether the question could be answered, not how the run fares: that is in its exit_code.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from launcher import jobs
from launcher.cli import render
from launcher.cli.screen import colour_wanted
from launcher.core.errors import UsageError
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Json
from launcher.jobs.changes import change_sentence, crew, size_words
from launcher.jobs.refs import RunRef
from launcher.jobs.resizing import SizeRequest, Waited
from launcher.record.events import encode
from launcher.record.rows import encode_line
from launcher.record.status import JobState, RunStatus, exit_code_of

if TYPE_CHECKING:
    from launcher.cli.watch import Output

_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _options(function: Callable[..., int | None]) -> Callable[..., None]:
    """--runs and -o, which every verb has; the body says how the command ends by returning an exit code or None."""

    def run(context: click.Context, /, runs: str | None, **given: object) -> None:
        code = function(runs=runs or jobs.default_runs(), **given)
        if code:
            context.exit(int(code))

    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    place = click.option("--runs", metavar="URI", default=None, help="Where runs are recorded (default: LAUNCHER_RUNS, else ./runs).")
    kind = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: JSON alone on stdout.")
    return place(kind(click.pass_context(run)))


@click.command()
@_options
def ls(runs: str, output: str) -> None:
    """List all runs, newest first."""
    statuses = jobs.list_runs(runs)
    if output == "json":
        _json([status.to_json() for status in statuses])
    elif statuses:
        _echo(render.runs_table(statuses))
    else:
        click.echo(f"no runs in {runs}", err=True)


@click.command()
@click.argument("run")
@_options
def status(run: str, runs: str, output: str) -> None:
    """Show how RUN fares (its name, its id, or the beginning of either)."""
    ref = jobs.find(run, runs)
    _show(jobs.status(ref), ref, output)


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the run has ended.")
@click.option("--rank", type=click.IntRange(min=0), default=None, help="Of the worker of this rank alone.")
@click.option("--since", metavar="TIME", default=None, help="Not before 30s, 10m, 2h or 1d ago, or an ISO time.")
@click.option("--tail", type=click.IntRange(min=0), default=None, help="The last so many lines.")
@_options
def logs(run: str, follow: bool, rank: int | None, since: str | None, tail: int | None, runs: str, output: str) -> None:
    """Print what the workers of RUN printed."""
    moment = parse_since(since, datetime.now(UTC)) if since is not None else None
    ref = jobs.find(run, runs)
    for line in jobs.logs(ref, follow=follow, rank=rank, since=moment, tail=tail):
        _json(encode_line(line)) if output == "json" else _echo(render.log_line(line))


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the run has ended.")
@_options
def events(run: str, follow: bool, runs: str, output: str) -> None:
    """Print the timeline of RUN."""
    ref = jobs.find(run, runs)
    for recorded in jobs.events(ref, follow=follow):
        _json(encode(recorded)) if output == "json" else _echo(render.event_line(recorded))


@click.command()
@click.argument("run")
@click.argument("size", required=False, metavar="SIZE")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has that size.")
@_options
def resize(run: str, size: str | None, no_wait: bool, runs: str, output: str) -> int:
    """Change how many workers RUN has: SIZE 3 within its bounds, SIZE 2..6 the bounds, with 6 wanted.

    It waits until the run has that size, or says what it waits for; ending the wait leaves the request in place.
    """
    ref = jobs.find(run, runs)
    if size is None:
        raise UsageError(
            "it does not say how many workers",
            where=ref.uri,
            expected="a number within the bounds such as 3, or bounds such as 2..6",
            next=f"`launch status {ref.name}` shows what it has",
        )
    request = jobs.resize(ref, size)
    asked = f"{ref.name} is asked for {size_words(request.workers)}"
    asked += f" instead of {size_words(request.before)}" if request.changed else " already: nothing new was written"
    if no_wait:
        _show_resized(asked, jobs.status(ref), output)
        return ExitCode.SUCCEEDED
    click.echo(f"{asked}; waiting", err=True)
    return _wait_for_size(ref, request, output)


@click.command()
@click.argument("run")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has stopped.")
@_options
def stop(run: str, no_wait: bool, runs: str, output: str) -> None:
    """Save a checkpoint and end RUN; no error if it has ended already."""
    ref = jobs.find(run, runs)
    now = jobs.stop(ref)
    if not now.state.terminal and not no_wait:
        click.echo(f"{ref.name} is asked to stop; waiting", err=True)
        now = deque(jobs.watch(ref), maxlen=1)[0]
    if output == "json":
        _json(now.to_json())
    elif not now.state.terminal:
        _echo(f"{ref.name} is asked to stop: {render.state_word(now.state)}")
    else:
        _echo(
            f"{ref.name} has ended: {render.state_word(now.state)} at step {render.steps(now)}"
            + (f"\n  {now.reason}" if now.reason else "")
        )


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it is started.")
@_options
def resume(run: str, overrides: tuple[str, ...], detach: bool, runs: str, output: Output) -> int:
    """Go on with RUN at its newest whole checkpoint; OVERRIDES such as trainer.epochs=20 lengthen it."""
    from launcher.cli import watch

    ref = jobs.resume(jobs.find(run, runs), overrides, tell=lambda sentence: click.echo(sentence, err=True))
    return watch.submitted(ref, output=output) if detach else watch.follow(ref, output=output, fresh=False)


@click.command()
@click.argument("run")
@_options
def dashboard(run: str, runs: str, output: str) -> None:
    """Print the address of the dashboard of RUN, and where its token lies; on a cluster, pass it on until Ctrl-C."""
    page = jobs.dashboard(jobs.find(run, runs))
    if page.tunnel is not None:
        with page.tunnel() as url:
            _json({"url": url, "token_file": ""}) if output == "json" else _echo(url)
            sys.stdout.flush()
            click.echo("passing it on until Ctrl-C", err=True)
            threading.Event().wait()
    elif output == "json":
        _json({"url": page.url, "token_file": page.token_file})
    else:
        _echo(page.url + (f"\ntoken: {page.token_file}" if page.token_file else ""))


def parse_since(text: str, now: datetime) -> datetime:
    """A moment from an age such as 10m, or from ISO 8601 (local time where it names no zone)."""
    if match := re.fullmatch(r"(\d+)([smhd])", text):
        return now - timedelta(seconds=int(match[1]) * _AGES[match[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither an age such as 30s, 10m, 2h or 1d nor an ISO time", param_hint="--since") from None
    return moment.astimezone(UTC)


def _wait_for_size(ref: RunRef, request: SizeRequest, output: str) -> int:
    """The exit code: 0 also where the size is still to come, else that of the run's end, 4 where no controller lives to bring it."""
    waited: Waited | None = None
    try:
        for look in jobs.follow_resize(ref, request):
            waited = look
    except KeyboardInterrupt:
        stays = f"the wish stays: {ref.name} is asked for {size_words(request.workers)}; {render.command('status', ref)} shows how it fares"
        click.echo(f"\n{stays}", err=True)
        if output == "json" and waited is not None:
            _json(waited.status.to_json())
        return ExitCode.INTERRUPTED
    assert waited is not None  # a wait looks once at least
    status, why = waited.status, waited.why
    if not why:
        said = f"{ref.name} has {crew(status)}"
        change = status.last_change
        if change is not None and change.generation == status.generation and request.before.target != request.workers.target:
            said += f"\n  {change_sentence(change, change.step)}"
    else:
        said = f"{ref.name}: {why}"
    _show_resized(said, status, output)
    if status.state is JobState.LOST:
        return ExitCode.INFRASTRUCTURE
    if not status.state.terminal:
        return ExitCode.SUCCEEDED
    return status.exit_code if status.exit_code is not None else exit_code_of(status.state)


def _show_resized(said: str, status: RunStatus, output: str) -> None:
    if output == "json":
        click.echo(said, err=True)
        _json(status.to_json())
    else:
        _echo(said)


def _show(status: RunStatus, ref: RunRef, output: str) -> None:
    if output == "json":
        _json(status.to_json())
    else:
        _echo(render.status_text(status, ref))


def _json(value: Json) -> None:
    click.echo(json.dumps(value, allow_nan=False))


def _echo(text: str) -> None:
    click.echo(text, color=colour_wanted(sys.stdout))
