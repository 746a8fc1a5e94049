"""Reading the run's timeline, metrics and logs back out of their segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.types import JsonObject
from launcher.jobs.observe import Observation
from launcher.jobs.refs import RunRef
from launcher.record.lineage import LineageEntry, lineage
from launcher.record.run_store import RunStore, Stream

FOLLOW_S = 0.5
_CLAIMS = frozenset({"steps", "evaluated", "checkpoint_committed"})
"""Events that say that steps are done. The others tell what happened, which stays true when steps are taken back."""


class Reader:
    """Records of one stream in order, each once: `new` gives those that came since."""

    def __init__(self, run: RunStore, stream: Stream, *, whole_lineage_only: bool) -> None:
        self._run = run
        self._stream = stream
        self._cut = whole_lineage_only
        self._seen: set[str] = set()

    def new(self) -> Iterator[JsonObject]:
        # listed before the terms are read: a term that is visible by then covers all that is listed
        names = [(term, name) for term, _, name in self._run.segments(self._stream) if name not in self._seen]
        if not names:
            return
        chain = {entry.term: entry for entry in lineage(self._run.terms()[1])} if self._cut else {}
        for term, name in names:
            entry = chain.get(term)
            if self._cut and entry is None:
                continue  # not visible yet, or never: look at it again next time
            self._seen.add(name)
            for record in self._run.segment(self._stream, name):
                kept = record if entry is None else within(entry, record, claims=self._stream == "metrics")
                if kept is not None:
                    yield kept

    def newest(self, wanted: int, chosen: Callable[[JsonObject], bool]) -> list[JsonObject]:
        """The last `wanted` chosen records of all there are, read from the end; `new` goes on after them."""
        found: deque[JsonObject] = deque()
        for _, _, name in reversed(self._run.segments(self._stream)):
            self._seen.add(name)
            if len(found) < wanted:
                records = [record for record in self._run.segment(self._stream, name) if chosen(record)]
                found.extendleft(reversed(records[-(wanted - len(found)) :]))
        return list(found)


def within(entry: LineageEntry, record: JsonObject, *, claims: bool = False) -> JsonObject | None:
    """What of a record of this term belongs to the run: all, nothing, or of a range of steps those up to the cut.

    `claims`: the record claims steps whatever its kind, as metrics do.
    """
    step: Any = record.get("step")
    if entry.end is None or not isinstance(step, int) or step <= entry.end or not (claims or record.get("kind") in _CLAIMS):
        return record
    first: Any = record.get("first")
    if record.get("kind") != "steps" or first > entry.end:
        return None
    samples: Any = record["samples"]
    batch = (samples[1] - samples[0]) // (step - first + 1)
    return {**record, "step": entry.end, "last": entry.end, "samples": [samples[0], entry.end * batch]}


def events(ref: RunRef, *, follow: bool = False, clock: Clock | None = None) -> Iterator[JsonObject]:
    """The timeline of the run, oldest first: what the chain of terms holds; steps that were taken back are not in it.

    With `follow`, what comes later too, until the run has ended.
    """
    reader = Reader(ref.open(), "events", whole_lineage_only=True)
    yield from reader.new()
    if follow:
        yield from _follow(ref, reader, clock or SystemClock())


def metrics(ref: RunRef) -> list[JsonObject]:
    """The rows of training and evaluation metrics, by step; rows of steps that were taken back are not in it."""
    return list(Reader(ref.open(), "metrics", whole_lineage_only=True).new())


def logs(
    ref: RunRef,
    *,
    follow: bool = False,
    rank: int | None = None,
    since: datetime | None = None,
    tail: int | None = None,
    clock: Clock | None = None,
) -> Iterator[JsonObject]:
    """What the workers printed, oldest first: {time, worker, rank, generation, stream, line}.

    Logs are not cut by the lineage: what was printed was printed. `rank` and `since` choose, `tail` gives the last so
    many of what is there, `follow` goes on until the run has ended.
    """
    oldest = timestamp(since) if since is not None else ""

    def chosen(record: JsonObject) -> bool:
        return (rank is None or record.get("rank") == rank) and str(record.get("time", "")) >= oldest

    reader = Reader(ref.open(), "logs", whole_lineage_only=False)
    yield from reader.newest(tail, chosen) if tail is not None else filter(chosen, reader.new())
    if follow:
        yield from filter(chosen, _follow(ref, reader, clock or SystemClock()))


def _follow(ref: RunRef, reader: Reader, clock: Clock) -> Iterator[JsonObject]:
    observation = Observation(ref, clock)
    while True:
        ended = observation.look().snapshot.ended
        yield from reader.new()
        if ended:
            return
        clock.sleep(FOLLOW_S)
