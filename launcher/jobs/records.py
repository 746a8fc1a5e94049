"""Reading the run's timeline, metrics and logs back out of their segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from msgspec import structs

from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.types import JsonObject
from launcher.jobs.observe import Observation
from launcher.jobs.refs import RunRef
from launcher.record.events import LedgerEntry, RecordedEvent, decode
from launcher.record.lineage import LineageEntry, lineage
from launcher.record.rows import EvaluationRow, LogLine, MetricsRow, decode_line, decode_row
from launcher.record.run_store import RunStore, Stream

FOLLOW_S = 0.5
_CLAIMS = frozenset({"steps", "evaluated", "checkpoint_committed"})
"""Events that say that steps are done. The others tell what happened, which stays true when steps are taken back."""

T = TypeVar("T")
Read = TypeVar("Read", covariant=True)


class Decode(Protocol[Read]):
    def __call__(self, document: JsonObject, *, where: str) -> Read: ...


class Reader(Generic[T]):
    """Records of one stream in order, each once: `new` gives those that came since.

    `within` says what of a record belongs to the run where its term was cut; without it, records of all terms are told.
    """

    def __init__(self, run: RunStore, stream: Stream, decode: Decode[T], within: Callable[[LineageEntry, T], T | None] | None) -> None:
        self._run = run
        self._stream = stream
        self._decode = decode
        self._within = within
        self._seen: set[str] = set()

    def new(self) -> Iterator[T]:
        """Raises StoreDamaged at a record that is not what was written."""
        # listed before the terms are read: a term that is visible by then covers all that is listed
        names = [(term, name) for term, _, name in self._run.segments(self._stream) if name not in self._seen]
        if not names:
            return
        chain = {entry.term: entry for entry in lineage(self._run.terms()[1])} if self._within is not None else {}
        for term, name in names:
            entry = chain.get(term)
            if self._within is not None and entry is None:
                continue  # not visible yet, or never: look at it again next time
            self._seen.add(name)
            for record in self._segment(name):
                kept = record if self._within is None or entry is None else self._within(entry, record)
                if kept is not None:
                    yield kept

    def newest(self, wanted: int, chosen: Callable[[T], bool]) -> list[T]:
        """The last `wanted` chosen records of all there are, read from the end; `new` goes on after them."""
        found: deque[T] = deque()
        for _, _, name in reversed(self._run.segments(self._stream)):
            self._seen.add(name)
            if len(found) < wanted:
                records = [record for record in self._segment(name) if chosen(record)]
                found.extendleft(reversed(records[-(wanted - len(found)) :]))
        return list(found)

    def skip(self) -> None:
        """Pass over all there is: `new` gives what comes after it."""
        self.newest(0, lambda record: False)

    def _segment(self, name: str) -> Iterator[T]:
        where = f"{self._run.uri}/{self._stream}/{name}"
        return (self._decode(document, where=where) for document in self._run.segment(self._stream, name))


def event_reader(run: RunStore) -> Reader[RecordedEvent]:
    """The timeline; steps that were taken back are not in it."""
    return Reader(run, "events", decode, event_within)


def row_reader(run: RunStore) -> Reader[MetricsRow | EvaluationRow]:
    """Rows of training and evaluation; those of steps that were taken back are not in it."""
    return Reader(run, "metrics", decode_row, row_within)


def log_reader(run: RunStore) -> Reader[LogLine]:
    """Logs are not cut by the lineage: what was printed was printed."""
    return Reader(run, "logs", decode_line, None)


def event_within(entry: LineageEntry, recorded: RecordedEvent) -> RecordedEvent | None:
    """What of an event of this term belongs to the run: all, nothing, or of a range of steps those up to the cut."""
    if entry.end is None or recorded.step <= entry.end or recorded.kind not in _CLAIMS:
        return recorded
    ledger = recorded.event
    if not isinstance(ledger, LedgerEntry) or ledger.first > entry.end:
        return None
    begin, end = ledger.samples
    batch = (end - begin) // (ledger.last - ledger.first + 1)
    cut = structs.replace(ledger, last=entry.end, samples=(begin, entry.end * batch))
    return replace(recorded, step=entry.end, event=cut)


def row_within(entry: LineageEntry, row: MetricsRow | EvaluationRow) -> MetricsRow | EvaluationRow | None:
    """The row, where its last step belongs to the run."""
    return row if entry.end is None or row.step <= entry.end else None


def events(ref: RunRef, *, follow: bool = False, clock: Clock | None = None) -> Iterator[RecordedEvent]:
    """The timeline of the run, oldest first: what the chain of terms holds; steps that were taken back are not in it.

    With `follow`, what comes later too, until the run has ended. Raises StoreDamaged.
    """
    reader = event_reader(ref.open())
    yield from reader.new()
    if follow:
        yield from _follow(ref, reader, clock or SystemClock())


def metrics(ref: RunRef) -> list[MetricsRow | EvaluationRow]:
    """The rows of training and evaluation metrics, by step; rows of steps that were taken back are not in it. Raises StoreDamaged."""
    return list(row_reader(ref.open()).new())


def logs(
    ref: RunRef,
    *,
    follow: bool = False,
    rank: int | None = None,
    since: datetime | None = None,
    tail: int | None = None,
    clock: Clock | None = None,
) -> Iterator[LogLine]:
    """What the workers printed, oldest first. Raises StoreDamaged.

    `rank` and `since` choose, `tail` gives the last so many of what is there, `follow` goes on until the run has ended.
    """
    oldest = timestamp(since) if since is not None else ""

    def chosen(line: LogLine) -> bool:
        return (rank is None or line.rank == rank) and line.time >= oldest

    reader = log_reader(ref.open())
    yield from reader.newest(tail, chosen) if tail is not None else filter(chosen, reader.new())
    if follow:
        yield from filter(chosen, _follow(ref, reader, clock or SystemClock()))


def _follow(ref: RunRef, reader: Reader[T], clock: Clock) -> Iterator[T]:
    observation = Observation(ref, clock)
    while True:
        ended = observation.look().snapshot.ended
        yield from reader.new()
        if ended:
            return
        clock.sleep(FOLLOW_S)
