"""What tests of a controller's records hand in: a writer that writes at once, a small job, rows as workers say them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from launcher.core.types import Generation, RunId, Step
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.record.rows import MetricsRow
from launcher.runtime.protocol.messages import Row
from tests.support.fakes import job_config

SUBMITTED_AT = "2026-01-01T00:00:00.000Z"


class ImmediateWriter:
    """In place of StoreWriter: writes at once, in order, on the caller's thread."""

    failed = False

    def submit(self, write: Callable[[], None]) -> None:
        write()


def job_spec(**changes: Any) -> JobSpec:
    """A job of run "r" with a batch of 64 samples; `changes` as job_config takes them."""
    config = job_config("memory://runs", **changes)
    return JobSpec(run_id=RunId("r"), name="r", config=config, code=CodeRef(digest=""), versions={}, submitted_at=SUBMITTED_AT)


def metrics_row(step: int, *, seconds: float = 1.0, loss: float = 0.5, metrics: Mapping[str, float | None] | None = None) -> MetricsRow:
    return MetricsRow(step=Step(step), time="", seconds=seconds, loss=loss, samples_per_s=1.0, metrics=dict(metrics or {}))


def said(first: int, last: int, generation: int = 1, *, seconds: float = 1.0, loss: float = 0.5) -> Row:
    """A row over the steps first..last, as a worker says it."""
    return Row(first=Step(first), generation=Generation(generation), row=metrics_row(last, seconds=seconds, loss=loss))
