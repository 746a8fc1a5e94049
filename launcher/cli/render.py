"""What people read, as pure strings with colours in them; printing to something else than a terminal strips these."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from launcher.cli.timeline import fact, facts, number
from launcher.jobs.changes import change_bar, change_sentence, crew
from launcher.jobs.refs import RunRef, absolute_runs, default_runs
from launcher.jobspec.environment import shown, variables
from launcher.record.events import RecordedEvent
from launcher.record.rows import LogLine
from launcher.record.status import JobState, RunStatus
from launcher.record.variables import Variables

if TYPE_CHECKING:
    from launcher.jobs.submitting import Plan

COLOURS = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.LOST: "red",
    JobState.STOPPED: "yellow",
    JobState.STOPPING: "yellow",
    JobState.PENDING: "cyan",
    JobState.STARTING: "cyan",
    JobState.RESIZING: "cyan",
    JobState.RUNNING: "blue",
}
_LABEL = 12


def command(verb: str, ref: RunRef, *words: str) -> str:
    """A command line that means this run in the present folder and environment."""
    place = [] if absolute_runs(default_runs()) == ref.runs else ["--runs", ref.runs]
    return shlex.join(["launch", verb, ref.name, *words, *place])


def state_word(state: JobState, width: int = 0) -> str:
    """The state in its colour, filled up with blanks to `width` characters."""
    return click.style(state.value.ljust(width), fg=COLOURS[state], bold=True)


def duration(seconds: float) -> str:
    """42s, 3m 05s, 2h 07m, 3d 04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def steps(status: RunStatus) -> str:
    """Committed steps, and those of the whole run where they are known."""
    return f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step)


def measures(status: RunStatus) -> list[str]:
    """The figures of the training in a few words each: epoch, loss, metrics, speed."""
    words = [f"epoch {status.epoch:.2f}"] if status.epoch else []
    if status.train_loss is not None:
        words.append(f"loss {number(status.train_loss)}")
    words += [f"{name} {number(value)}" for name, value in sorted(status.metrics.items()) if name != "loss"]
    if status.samples_per_s is not None:
        words.append(f"{number(status.samples_per_s)} samples/s")
    return words


def progress_line(status: RunStatus, eta_s: float | None = None) -> str:
    """One line of a running job: state, step, figures, time to go, workers."""
    parts = [state_word(status.state)]
    if status.state.terminal or status.step or status.total_steps:
        share = f" ({100 * status.step / status.total_steps:.0f} %)" if status.total_steps else ""
        parts.append(f"step {steps(status)}{share}")
    parts += measures(status)
    if eta_s is not None:
        parts.append(f"{duration(eta_s)} to go")
    if status.world_size:
        parts.append(crew(status))
    if status.reason and not status.state.terminal:
        parts.append(status.reason)
    return "  ".join(parts)


def event_line(recorded: RecordedEvent) -> str:
    """time, where it happened and what."""
    place = click.style(f"[term {recorded.term} generation {recorded.generation} step {recorded.step}]", dim=True)
    return f"{clock_time(recorded.time)}  {place}  {recorded.kind}  {facts(recorded)}".rstrip()


def log_line(line: LogLine) -> str:
    """A line that a worker printed, with its rank before it."""
    rank = click.style(f"[rank {line.rank}]", fg="red" if line.stream == "stderr" else "cyan")
    return f"{rank} {line.line}"


def clock_time(moment: str) -> str:
    """Local time of day of a recorded moment; with the date when it is another day's."""
    when = _moment(moment)
    if when is None:
        return moment
    local = when.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M:%S")


def hints(ref: RunRef, dashboard: str = "") -> str:
    """What to type next, right after a submit."""
    rows = [
        ("status", command("status", ref)),
        ("logs", command("logs", ref, "-f")),
        ("stop", command("stop", ref)),
        ("dashboard", dashboard or command("dashboard", ref)),
    ]
    return "\n".join([f"{click.style(ref.name, bold=True)} is submitted; its record: {ref.uri}", *_rows(rows)])


def summary(status: RunStatus, ref: RunRef) -> str:
    """The end of a run: what became of it, the figures, where everything is, what to do next."""
    rows = [("steps", steps(status) + (f", {status.epoch:.2f} epochs" if status.epoch else ""))]
    rows += _figures(status)
    if (taken := elapsed(status)) is not None:
        rows.append(("time", duration(taken)))
    rows += _tracking(status)
    rows += _places(status, ref)
    if status.state is not JobState.SUCCEEDED:
        rows.append(("resume", command("resume", ref)))
    first = f"{state_word(status.state)}  {click.style(ref.name, bold=True)}"
    return "\n".join([first, *([_indented(status.reason)] if status.reason else []), *_rows(rows)])


def status_text(status: RunStatus, ref: RunRef) -> str:
    """All of one run's status for a person."""
    rows: list[tuple[str, str]] = [("run", ref.run_id)] if ref.run_id != ref.name else []
    rows += [("steps", steps(status) + (f", {status.epoch:.2f} epochs" if status.epoch else "")), ("workers", crew(status))]
    rows += _group(status)
    rows += _figures(status)
    if status.steps_lost or status.samples_repeated:
        rows.append(("repeated", f"{status.steps_lost} steps lost, {status.samples_repeated} samples taken again"))
    rows += [
        (label, clock_time(moment))
        for label, moment in (("submitted", status.submitted_at), ("started", status.started_at), ("ended", status.ended_at))
        if moment
    ]
    rows += [("member", " ".join(f"{key}={fact(value)}" for key, value in asdict(member).items())) for member in status.members]
    if status.device:
        rows.append(("device", status.device))
    rows += _environment(status.environment)
    if status.dashboard:
        rows.append(("dashboard", status.dashboard))
    rows += _tracking(status)
    rows += _places(status, ref)
    if status.state in (JobState.FAILED, JobState.STOPPED, JobState.LOST):
        rows.append(("resume", command("resume", ref)))
    first = f"{click.style(ref.name, bold=True)}  {state_word(status.state)}"
    return "\n".join([first, *([_indented(status.reason)] if status.reason else []), *_rows(rows)])


def runs_table(statuses: Sequence[RunStatus]) -> str:
    """One line a run, under a head."""
    head = ("NAME", "STATE", "STEP", "LOSS", "METRICS", "WORKERS", "SUBMITTED")
    body = [
        (
            status.name,
            status.state.value,
            steps(status) if status.step or status.total_steps else "-",
            number(status.train_loss) if status.train_loss is not None else "-",
            ", ".join(f"{name} {number(value)}" for name, value in sorted(status.metrics.items()) if name != "loss") or "-",
            f"{status.world_size or '-'}/{status.workers.target}",
            clock_time(status.submitted_at),
        )
        for status in statuses
    ]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = [click.style("  ".join(word.ljust(width) for word, width in zip(head, widths, strict=True)).rstrip(), dim=True)]
    for status, row in zip(statuses, body, strict=True):
        cells = [word.ljust(width) for word, width in zip(row, widths, strict=True)]
        cells[1] = state_word(status.state, widths[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """What would be submitted, and whether it fits now."""
    config, place = plan.spec.config, plan.placement
    trainer, bounds = config.trainer, config.workers
    length = f"{trainer.steps} steps" if trainer.steps is not None else f"{number(trainer.epochs or 0)} epochs"
    workers = str(bounds.min) if bounds.min == bounds.max else f"{bounds.min}..{bounds.max}"
    rows = [
        ("model", config.model.target),
        ("data", config.data.target),
        ("training", f"{length} of {trainer.global_batch_size} samples, {trainer.precision}, seed {config.seed}"),
        ("shards", f"{config.shards} of {trainer.micro_batch_size} samples a step, up to {config.fused_shards} in one forward pass"),
        ("workers", f"{workers}, {place.gpu_per_worker} GPU each, on {place.device}"),
        ("backend", f"{config.backend.name}: {place.where}"),
        ("code", _code(plan)),
        *_environment(variables(config)),
        ("runs", config.runs),
        ("name", config.name or "its id"),
    ]
    if place.fits:
        verdict = f"{click.style('fits now', fg='green', bold=True)} with {place.workers} worker{'' if place.workers == 1 else 's'}"
    else:
        verdict = click.style("does not fit now", fg="red", bold=True)
    verdict += f": {place.reason}" if place.reason else ""
    return "\n".join([verdict, *_rows(rows), *(_indented(sentence) for sentence in plan.left_behind), "  nothing was submitted"])


def elapsed(status: RunStatus) -> float | None:
    """Seconds from start to end as the record has them; for people only."""
    start, end = _moment(status.started_at or status.submitted_at), _moment(status.ended_at or "")
    return (end - start).total_seconds() if start and end else None


def _code(plan: Plan) -> str:
    code = plan.spec.code
    commit = f", git {code.git_commit[:12]}{' with changes' if code.git_dirty else ''}" if code.git_commit else ""
    return f"{plan.code_files} files, {plan.code_bytes / 1024:,.0f} KiB, {code.digest[:12]}{commit}"


def _environment(variables: Variables) -> list[tuple[str, str]]:
    return [("environment" if not number else "", f"{name}={shown(value)}") for number, (name, value) in enumerate(variables.items())]


def _figures(status: RunStatus) -> list[tuple[str, str]]:
    rows = [("loss", number(status.train_loss))] if status.train_loss is not None else []
    rows += [(f"test {name}" if name == "loss" else name, number(value)) for name, value in sorted(status.metrics.items())]
    if status.samples_per_s is not None:
        rows.append(("speed", f"{number(status.samples_per_s)} samples/s"))
    if status.goodput is not None:
        rows.append(("goodput", f"{100 * status.goodput:.0f} %"))
    return rows


def _group(status: RunStatus) -> list[tuple[str, str]]:
    """What there is to say of the group beyond its size."""
    rows = [("draining", ", ".join(status.draining))] if status.draining else []
    rows += [("slow", f"{', '.join(status.stragglers)}: much slower than the others")] if status.stragglers else []
    if status.last_change is None:
        return rows
    rows.append(("last change", change_sentence(status.last_change, status.last_change.step)))
    bar = change_bar(status.last_change)
    rows += [("", bar)] if bar else []
    return [*rows, ("changes", str(status.changes))]


def _tracking(status: RunStatus) -> list[tuple[str, str]]:
    return [("" if index else "tracking", message) for index, message in enumerate(status.tracking)]


def _places(status: RunStatus, ref: RunRef) -> list[tuple[str, str]]:
    rows = [("checkpoint", f"step {status.checkpoint.step}  {status.checkpoint.uri}")] if status.checkpoint else []
    return [*rows, ("logs", command("logs", ref)), ("record", ref.uri)]


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {click.style(f'{label:<{_LABEL}}', dim=True)}{text}" for label, text in rows]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
