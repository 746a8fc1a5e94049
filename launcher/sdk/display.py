"""A run as a plain HTML table."""

from __future__ import annotations

from html import escape

from launcher.jobs.changes import change_sentence, crew
from launcher.jobs.refs import RunRef
from launcher.jobspec.environment import shown
from launcher.record.status import RunStatus


def run_html(status: RunStatus | None, ref: RunRef, *, trouble: str = "") -> str:
    """State, progress, figures and places; everything that came from outside is escaped."""
    rows: list[tuple[str, str]] = [("run", f"<b>{escape(ref.name)}</b>")]
    if trouble:
        rows.append(("trouble", f"<pre>{escape(trouble)}</pre>"))
    if status is not None:
        rows += _rows(status)
    rows.append(("record", f"<code>{escape(ref.uri)}</code>"))
    cells = "".join(f"<tr><th style='text-align:left'>{label}</th><td style='text-align:left'>{value}</td></tr>" for label, value in rows)
    return f"<table>{cells}</table>"


def _rows(status: RunStatus) -> list[tuple[str, str]]:
    rows = [("state", f"<b>{status.state.value}</b>")]
    if status.reason:
        rows.append(("reason", f"<pre>{escape(status.reason)}</pre>"))
    rows.append(("step", _progress(status)))
    if status.train_loss is not None:
        rows.append(("loss", f"{status.train_loss:.4g}"))
    rows += [(escape(name), f"{value:.4g}" if value is not None else "not finite") for name, value in sorted(status.metrics.items())]
    if status.samples_per_s is not None:
        rows.append(("samples/s", f"{status.samples_per_s:,.0f}"))
    rows.append(("workers", escape(crew(status))))
    if status.last_change is not None:
        rows.append(("last change", escape(change_sentence(status.last_change, status.last_change.step))))
    if status.environment:
        words = "\n".join(f"{name}={shown(value)}" for name, value in status.environment.items())
        rows.append(("environment", f"<pre>{escape(words)}</pre>"))
    if status.checkpoint is not None:
        rows.append(("checkpoint", f"step {status.checkpoint.step} <code>{escape(status.checkpoint.uri)}</code>"))
    if status.dashboard.startswith(("http://", "https://")):
        address = escape(status.dashboard, quote=True)
        rows.append(("dashboard", f"<a href='{address}' rel='noopener' target='_blank'>{address}</a>"))
    return rows


def _progress(status: RunStatus) -> str:
    words = f"{status.step} of {status.total_steps}" if status.total_steps else str(status.step)
    bar = f" <progress value='{status.step}' max='{status.total_steps}'></progress>" if status.total_steps else ""
    return f"{words} (epoch {status.epoch:.2f}){bar}"
