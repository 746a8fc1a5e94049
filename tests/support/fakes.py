"""Doubles for the parts that act: a backend that only remembers, a controller that only writes, a clock that plays a script."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.backends.base import Dashboard, Finding, Owner, Placement
from launcher.config.parse import parse_config
from launcher.config.schema import JobConfig
from launcher.core.clock import ManualClock, timestamp
from launcher.core.types import JsonObject, Step, Term
from launcher.jobspec.code import CodeArchive
from launcher.jobspec.job import JobSpec
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.record.status import JobState, RunStatus


def job_config(runs: Path | str, **changes: Any) -> JobConfig:
    """A small valid configuration; keys with a dot written with two underscores: trainer__steps=7."""
    document: dict[str, Any] = {
        "runs": str(runs),
        "workers": 1,
        "model": {"_target_": "models.mlp.MLP", "width": 8},
        "data": {"_target_": "models.digits.Digits"},
        "task": {"_target_": "launcher.training.tasks.Classification"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "trainer": {"epochs": 10},
        "elastic": {},
        "resources": {},
        "checkpoint": {},
        "backend": {},
        "tracking": {"name": "none"},
        "code": {},
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            document[group] = {**document[group], name: value}
        else:
            document[group] = value
    return parse_config(document)


def code_archive(files: Sequence[str] = ("models/mlp.py", "models/digits.py"), variables: Sequence[str] = ()) -> CodeArchive:
    return CodeArchive(
        digest="c0de" * 16, data=b"zip", git_commit=None, git_dirty=False, files=tuple(files), variables=frozenset(variables)
    )


@dataclass
class FakeBackend:
    """Says what it is told to say, and remembers what was asked of it."""

    owned: Owner = Owner.ALIVE
    placement: Placement = field(
        default_factory=lambda: Placement(fits=True, workers=1, device="cpu", gpu_per_worker=0, where="this machine (2 cores)")
    )
    place_error: Exception | None = None
    launch_error: BaseException | None = None
    on_launch: Callable[[RunStore], None] = lambda run: None
    page: Dashboard | None = None
    remains: str = ""
    said: str = ""
    findings: list[Finding] = field(default_factory=list)
    launched: list[JobSpec] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)

    def place(self, spec: JobSpec) -> Placement:
        if self.place_error is not None:
            raise self.place_error
        return self.placement

    def announce(self, run: RunStore) -> None:
        self.announced.append(run.run_id)

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        if self.launch_error is not None:
            raise self.launch_error
        self.launched.append(spec)
        self.on_launch(run)

    def owner(self, run: RunStore) -> Owner:
        return self.owned

    def reason_pending(self, run: RunStore) -> str:
        return "the controller is starting"

    def last_words(self, run: RunStore) -> str:
        return self.said

    def remove(self, run: RunStore) -> str:
        self.removed.append(run.run_id)
        return self.remains

    def dashboard(self, run: RunStore) -> Dashboard | None:
        return self.page

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        yield from self.findings


_installed: list[FakeBackend] = []


def install_backend(backend: FakeBackend) -> str:
    """Where launcher.backends.base.BACKENDS finds this backend from now on."""
    _installed[:] = [backend]
    return f"{__name__}:installed_backend"


def installed_backend() -> FakeBackend:
    return _installed[0]


class ScriptedClock(ManualClock):
    """Sleeping moves the time and does on the way what was planned for it."""

    def __init__(self) -> None:
        super().__init__()
        self._script: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._script, (seconds, next(self._order), act))

    def every(self, seconds: float, act: Callable[[], object], *, until: float) -> None:
        for number in range(1, int(until / seconds) + 1):
            self.at(number * seconds, act)

    def sleep(self, seconds: float) -> None:
        goal = self.monotonic() + seconds
        while self._script and self._script[0][0] <= goal:
            moment, _, act = heapq.heappop(self._script)
            self.advance(max(0.0, moment - self.monotonic()))
            act()
        self.advance(goal - self.monotonic())


class FakeController:
    """Holds a term and writes what it is told to."""

    def __init__(self, run: RunStore, clock: ManualClock, **status: Any) -> None:
        self.run = run
        self.clock = clock
        desired = run.desired()
        assert desired is not None
        self.term = run.claim_term("a controller", timestamp(clock.now()))
        document = run.spec(1)
        assert document is not None
        self.status = RunStatus(
            run_id=run.run_id,
            name=str(document["name"]),
            state=JobState.STARTING,
            term=self.term,
            workers=desired.workers,
            total_steps=100,
            submitted_at=desired.at,
            started_at=timestamp(clock.now()),
        )
        self._segments = {"events": 0, "metrics": 0, "logs": 0}
        self._first = status

    def begin_term(self, *, from_term: Term | None = None, checkpoint_step: int | None = None) -> FakeController:
        step = Step(checkpoint_step) if checkpoint_step is not None else None
        self.run.create_base(self.term, TermBase(from_term=from_term, checkpoint_step=step, adopted_step=None))
        self.write(**self._first)
        return self

    def write(self, **changes: Any) -> RunStatus:
        self.status = replace(self.status, sequence=self.status.sequence + 1, updated_at=timestamp(self.clock.now()), **changes)
        self.run.put_status(self.term, self.status)
        return self.status

    def beat(self) -> RunStatus:
        return self.write(step=self.status.step + 1)

    def end(self, state: JobState, **changes: Any) -> RunStatus:
        return self.write(state=state, ended_at=timestamp(self.clock.now()), **changes)

    def segment(self, stream: Any, *records: JsonObject) -> None:
        self._segments[stream] += 1
        stamp: JsonObject = {"time": timestamp(self.clock.now()), "generation": 1}
        stamp |= {"worker": "w0", "rank": 0, "stream": "stdout"} if stream == "logs" else {"term": self.term}
        stamped = [{**stamp, **record} for record in records]
        self.run.put_segment(stream, self.term, self._segments[stream], stamped)

    def checkpoint(self, step: int) -> None:
        """A manifest's name; its content is for other tests."""
        self.run.store.put(self.run.key(f"checkpoints/{step:012d}-{self.term:012d}.json"), b"{}")
