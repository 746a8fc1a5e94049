"""What a term leaves in the run store beside checkpoints and status: events, metrics and logs, in segments. Runs in the controller process.

Events other than the ledger's are written at the next flush. The ledger (which steps, by which generation, which samples of the stream) goes
out with the metrics, at the latest before a manifest that rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launcher.core.clock import Clock, timestamp
from launcher.core.types import Generation, JsonObject, Step, Term
from launcher.record.events import Event, LedgerEntry, RecordedEvent, encode
from launcher.record.rows import EvaluationRow, LogLine, MetricsRow, encode_line, encode_row
from launcher.record.run_store import RunStore, Stream
from launcher.runtime.records.store_writer import StoreWriter


@dataclass(frozen=True)
class _Span:
    """Committed steps first..last of one generation, until they are written as one entry of the ledger."""

    first: Step
    last: Step
    generation: Generation


class EventLog:
    def __init__(self, run: RunStore, term: Term, writer: StoreWriter, clock: Clock, *, batch: int) -> None:
        """`batch`: samples of a step."""
        self._run, self._term, self._writer, self._clock, self._batch = run, term, writer, clock, batch
        self._pending: dict[Stream, list[JsonObject]] = {"events": [], "metrics": [], "logs": []}
        self._sequence: dict[Stream, int] = {"events": 0, "metrics": 0, "logs": 0}
        self._span: _Span | None = None

    @property
    def term(self) -> Term:
        return self._term

    def event(self, event: Event, *, step: Step, generation: Generation) -> None:
        time = timestamp(self._clock.now())
        recorded = RecordedEvent(time=time, term=self._term, generation=generation, step=step, event=event)
        self._pending["events"].append(encode(recorded))

    def line(self, line: LogLine) -> None:
        self._pending["logs"].append(encode_line(line))

    def evaluation(self, row: EvaluationRow) -> None:
        self._pending["metrics"].append(encode_row(row))

    def steps(self, row: MetricsRow, *, first: Step, generation: Generation) -> None:
        """A row of committed training steps, from `first` to the row's own step: for metrics and ledger."""
        self._pending["metrics"].append(encode_row(row))
        span = self._span
        if span is not None and span.generation == generation and span.last == first - 1:
            self._span = replace(span, last=row.step)
            return
        self._close_span()
        self._span = _Span(first, row.step, generation)

    def _close_span(self) -> None:
        span, self._span = self._span, None
        if span is not None:
            samples = ((span.first - 1) * self._batch, span.last * self._batch)
            entry = LedgerEntry(first=span.first, last=span.last, samples=samples)
            self.event(entry, step=span.last, generation=span.generation)

    def flush(self, *, ledger: bool, durable: Callable[[Step], None] | None = None) -> None:
        """Hand everything pending to the writer; with `ledger`, steps and metrics as well, and then call `durable` with the last step.

        It is not called once a higher term was claimed: whoever took over may have looked before this was written, and
        has to get those steps from the workers.
        """
        span = self._span if ledger else None
        if ledger:
            self._close_span()
        streams: tuple[Stream, ...] = ("metrics", "events", "logs") if ledger else ("events", "logs")
        for stream in streams:
            records = self._pending[stream]
            if records:
                self._pending[stream] = []
                self._sequence[stream] += 1
                self._writer.submit(_segment(self._run, stream, self._term, self._sequence[stream], records))
        if durable is not None and span is not None:
            reached, tell = span.last, durable
            self._writer.submit(lambda: tell(reached) if self._run.highest_term() <= self._term else None)


def _segment(run: RunStore, stream: Stream, term: Term, sequence: int, records: Sequence[JsonObject]) -> Callable[[], None]:
    return lambda: run.put_segment(stream, term, sequence, records)
