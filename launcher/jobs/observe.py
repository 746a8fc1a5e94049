"""The state of a run, as far as this machine can know it: states without a writer are computed, dead runs are closed.

Liveness is whether the status changes on this reader's monotonic clock, or what the backend knows of the run's
processes; wall clocks of two machines are never compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from msgspec import Struct, field

from launcher.backends.base import Backend, Dashboard, open_backend
from launcher.core.clock import Clock, SystemClock
from launcher.core.errors import BackendUnavailable, LauncherError, RunStateError, StoreDamaged
from launcher.core.store import open_store
from launcher.jobs.closing import close
from launcher.jobs.refs import RunRef, absolute_runs, all_names
from launcher.jobs.snapshot import Snapshot, Verdict, as_lost, as_pending, as_written, judge, read_snapshot
from launcher.record.desired import WorkerBounds
from launcher.record.parsing import parsed
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus
from launcher.record.variables import Variables

POLL_S = 0.25
_ATTEMPTS = 40


@dataclass(frozen=True)
class Seen:
    status: RunStatus
    settled: bool
    """False: more watching may change the answer."""
    snapshot: Snapshot


class _Backend(Struct):
    name: str


class _Config(Struct):
    backend: _Backend
    environment: Variables = field(default_factory=dict)


class _Spec(Struct):
    """As much of a spec as is needed before a controller leads the run; another launcher may have written the rest."""

    config: _Config


def backend_of(run: RunStore) -> Backend:
    """The backend that a run was submitted to. Raises StoreDamaged where its spec does not name one."""
    return open_backend(_config_of(run, 1).backend.name)


def _config_of(run: RunStore, number: int) -> _Config:
    document = run.spec(number)
    if document is None:
        raise StoreDamaged(f"the record of this run is not whole: spec-{number}.json is missing", where=run.uri)
    return parsed(document, _Spec, where=f"{run.uri}/spec-{number}.json").config


class Observation:
    """One reader's view of one run, over the time that it looks."""

    def __init__(self, ref: RunRef, clock: Clock) -> None:
        self.ref = ref
        self.run = ref.open()
        self._clock = clock
        self._backend: Backend | None = None
        self._signs: tuple[object, ...] | None = None
        self._since = clock.monotonic()
        self._moved = False

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            self._backend = backend_of(self.run)
        return self._backend

    def look(self, *, closing: bool = True) -> Seen:
        """The state now. A run that is certainly dead is closed first, unless `closing` is off: then it reads as LOST."""
        for _ in range(_ATTEMPTS):
            snapshot = self._read()
            if snapshot.ended:
                return Seen(self._written(snapshot), True, snapshot)
            owner = self.backend.owner(self.run)
            verdict = judge(snapshot, owner, quiet_s=self._clock.monotonic() - self._since, moved=self._moved)
            if verdict is not Verdict.DEAD:
                return self._say(verdict, snapshot)
            # what the owner's end wrote last may be newer than the snapshot
            if self._read().signs != snapshot.signs:
                continue
            if not closing:
                return self._say(Verdict.LOST, snapshot)
            state, reason = _how_it_ended(self.ref, snapshot, self.backend.last_words(self.run))
            if not close(self.ref, self.run, snapshot, state=state, reason=reason, clock=self._clock):
                self._clock.sleep(POLL_S)  # somebody else took the next term and is closing the run
        raise RunStateError("others keep taking this run's next term", where=self.run.uri, next="look again in a while")

    def _read(self) -> Snapshot:
        snapshot = read_snapshot(self.run)
        if snapshot.signs != self._signs:
            self._moved = self._signs is not None
            self._signs = snapshot.signs
            self._since = self._clock.monotonic()
        return snapshot

    def _say(self, verdict: Verdict, snapshot: Snapshot) -> Seen:
        if verdict is Verdict.LOST:
            return Seen(as_lost(snapshot, self.ref.name, self.ref.run_id), True, snapshot)
        settled = verdict is not Verdict.UNSURE
        return Seen(self._pending(snapshot) if snapshot.pending else self._written(snapshot), settled, snapshot)

    def _written(self, snapshot: Snapshot) -> RunStatus:
        return as_written(snapshot, self.ref.name, self.ref.run_id)

    def _pending(self, snapshot: Snapshot) -> RunStatus:
        status = as_pending(snapshot, self.ref.name, self.ref.run_id, self.backend.reason_pending(self.run))
        return replace(status, environment=_config_of(self.run, snapshot.desired.spec).environment)


def _how_it_ended(ref: RunRef, snapshot: Snapshot, last_words: str) -> tuple[JobState, str]:
    again = f"`launch resume {ref.name}` goes on at the newest whole checkpoint"
    if snapshot.desired.state == "stopped":
        return JobState.STOPPED, f"stopped by {snapshot.desired.by}; nobody was left to save a last checkpoint. {again}"
    said = f"\nlast words: {last_words}" if last_words else ""
    if snapshot.pending:
        return JobState.FAILED, f"it never began: what was to start it is gone. `launch resume {ref.name}` starts it{said}"
    last = snapshot.written.updated_at if snapshot.written else ""
    return (
        JobState.FAILED,
        f"its controller and supervisor are gone (killed, or the machine restarted); last sign of life {last}. {again}{said}",
    )


def observe(ref: RunRef, *, clock: Clock | None = None, closing: bool = True) -> Seen:
    """One settled look; takes up to a lease where only the store can be asked."""
    clock = clock or SystemClock()
    observation = Observation(ref, clock)
    while not (seen := observation.look(closing=closing)).settled:
        clock.sleep(POLL_S)
    return seen


def status(ref: RunRef, *, clock: Clock | None = None) -> RunStatus:
    """The state of a run now, LOST and PENDING included; a run whose processes are certainly gone is closed by this."""
    return observe(ref, clock=clock).status


def list_runs(runs: str, *, clock: Clock | None = None) -> list[RunStatus]:
    """All runs, newest first, each as `status` says it; those that must be watched are watched together, one lease in all."""
    clock = clock or SystemClock()
    place = absolute_runs(runs)
    refs = [RunRef(place, record.run_id, record.name) for record in all_names(open_store(place))]
    watched = [Observation(ref, clock) for ref in refs]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(_look, watched))
        while open_ones := [index for index, (_, settled) in enumerate(answers) if not settled]:
            clock.sleep(POLL_S)
            for index, answer in zip(open_ones, pool.map(_look, [watched[index] for index in open_ones]), strict=True):
                answers[index] = answer
    return [status for status, _ in answers]


def _look(observation: Observation) -> tuple[RunStatus, bool]:
    try:
        seen = observation.look()
    except LauncherError as error:  # one broken record must not hide the other runs
        ref = observation.ref
        bounds = WorkerBounds(min=0, max=0, target=0)
        return RunStatus(run_id=ref.run_id, name=ref.name, state=JobState.LOST, reason=error.what, workers=bounds), True
    return seen.status, seen.settled


def watch(ref: RunRef, *, interval_s: float = 0.5, clock: Clock | None = None) -> Iterator[RunStatus]:
    """The state again and again, at least once, until it is terminal; a LOST run may come back, so it goes on through that."""
    clock = clock or SystemClock()
    observation = Observation(ref, clock)
    while True:
        status = observation.look().status
        yield status
        if status.state.terminal:
            return
        clock.sleep(interval_s)


def dashboard(ref: RunRef) -> Dashboard:
    """Where the pages of a run are served. Raises BackendUnavailable while none is up."""
    run = ref.open()
    page = backend_of(run).dashboard(run)
    if page is None:
        raise BackendUnavailable(
            "no dashboard is up for this run",
            where=ref.uri,
            expected="it is up while jobs run here, and a while after",
            next=f"`launch status {ref.name}`, `launch logs {ref.name}` and `launch events {ref.name}` read the record",
        )
    return page
