"""What a term leaves in the run store beside checkpoints and status: events, metrics and logs, in segments.

Events other than the ledger's are written at the next flush. The ledger ("steps": which steps, by which generation, which
samples of the stream) goes out with the metrics, at the latest before a manifest that rests on it.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.core.clock import Clock, timestamp
from launcher.core.types import Generation, JsonObject, Term
from launcher.record.run_store import RunStore, Stream
from launcher.runtime.records.store_writer import StoreWriter


class EventLog:
    def __init__(self, run: RunStore, term: Term, writer: StoreWriter, clock: Clock) -> None:
        self._run, self._term, self._writer, self._clock = run, term, writer, clock
        self._pending: dict[Stream, list[JsonObject]] = {"events": [], "metrics": [], "logs": []}
        self._sequence: dict[Stream, int] = {"events": 0, "metrics": 0, "logs": 0}
        self._ledger: JsonObject | None = None

    def event(self, kind: str, *, step: int, generation: int, **facts: object) -> None:
        record: JsonObject = {
            "time": timestamp(self._clock.now()),
            "term": self._term,
            "generation": generation,
            "step": step,
            "kind": kind,
        }
        self._pending["events"].append({**record, **facts})  # type: ignore[dict-item]

    def line(self, record: JsonObject) -> None:
        self._pending["logs"].append(record)

    def row(self, row: JsonObject) -> None:
        """A row of metrics that is not a training row, such as an evaluation."""
        self._pending["metrics"].append(row)

    def steps(self, row: JsonObject, *, first: int, generation: Generation, batch: int) -> None:
        """A row of committed training steps, from `first` to the row's own step: for metrics and ledger."""
        self._pending["metrics"].append(row)
        last = int(str(row["step"]))
        if self._ledger is not None and self._ledger["generation"] == generation and self._ledger["last"] == first - 1:
            self._ledger = {**self._ledger, "last": last, "samples": [(int(str(self._ledger["first"])) - 1) * batch, last * batch]}
            return
        self._close_ledger()
        self._ledger = {"first": first, "last": last, "generation": generation, "samples": [(first - 1) * batch, last * batch]}

    def _close_ledger(self) -> None:
        if self._ledger is not None:
            ledger, self._ledger = self._ledger, None
            facts = {"first": ledger["first"], "last": ledger["last"], "samples": ledger["samples"]}
            self.event("steps", step=int(str(ledger["last"])), generation=int(str(ledger["generation"])), **facts)

    def flush(self, *, ledger: bool, durable: Callable[[int], None] | None = None) -> None:
        """Hand everything pending to the writer; with `ledger`, steps and metrics as well, and then call `durable` with the last step.

        It is not called once a higher term was claimed: whoever took over may have looked before this was written, and
        has to get those steps from the workers.
        """
        reached = int(str(self._ledger["last"])) if ledger and self._ledger is not None else None
        if ledger:
            self._close_ledger()
        streams: tuple[Stream, ...] = ("metrics", "events", "logs") if ledger else ("events", "logs")
        for stream in streams:
            records = self._pending[stream]
            if records:
                self._pending[stream] = []
                self._sequence[stream] += 1
                self._writer.submit(_segment(self._run, stream, self._term, self._sequence[stream], records))
        if durable is not None and reached is not None:
            self._writer.submit(lambda: durable(reached) if self._run.highest_term() <= self._term else None)


def _segment(run: RunStore, stream: Stream, term: Term, sequence: int, records: list[JsonObject]) -> Callable[[], None]:
    return lambda: run.put_segment(stream, term, sequence, records)
