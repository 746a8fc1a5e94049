"""What the controller does with rows of steps and parts of checkpoints, in the order of the real one: ledger first, manifest second.

Reduced: a manifest here has a state and one chunk a rank; it is committed by the real commit_manifest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.catalog import commit_manifest
from launcher.core.errors import CheckpointAbandoned, StoreUnavailable
from launcher.core.types import Generation, JsonObject
from launcher.record.run_store import RunStore
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.controller import Controller

Save = tuple[int, int]
"""Step and generation: all parts of a checkpoint come from one generation."""


class Writer(Process):
    """The thread that writes, in order; StoreUnavailable repeats."""

    def __init__(self, owner: Controller) -> None:
        super().__init__(owner.loop)
        self._work: deque[Callable[[], None]] = deque()
        self._busy = False

    def submit(self, write: Callable[[], None]) -> None:
        self._work.append(write)
        if not self._busy:
            self._busy = True
            self.at(0.005, self._serve)

    @property
    def idle(self) -> bool:
        return not self._work and not self._busy

    def _serve(self) -> None:
        if self._work:
            try:
                self._work[0]()
            except StoreUnavailable:
                self.at(0.2, self._serve)
                return
            self._work.popleft()
        if self._work:
            self.at(0.005, self._serve)
        else:
            self._busy = False


@dataclass(frozen=True)
class Chunk:
    digest: str


@dataclass(frozen=True)
class Manifest:
    step: int
    term: int
    generation: int
    state: int
    chunks: tuple[Chunk, ...]

    def to_json(self) -> JsonObject:
        return {
            "step": self.step,
            "term": self.term,
            "generation": self.generation,
            "state": self.state,
            "chunks": [{"digest": chunk.digest} for chunk in self.chunks],
        }


class Saver:
    def __init__(self, owner: Controller, run: RunStore, term: int, start: int, saved: set[int]) -> None:
        """`start`: of the term; `saved`: steps of which the lineage has a checkpoint already."""
        self._owner, self._run, self._term, self._start = owner, run, term, start
        self._parts: dict[Save, dict[int, dict[str, Any]]] = {}
        self._whole: dict[Save, dict[int, dict[str, Any]]] = {}
        self._since: dict[Save, float] = {}
        self._done: set[Save] = set()
        self._committing: set[Save] = set()
        self._steps = set(saved)

    def done(self, save: Save) -> bool:
        """Whether it is decided: whoever still speaks of it may forget it, and nobody before. A saved step needs no second save, and
        one before the term began gets none: a manifest of this term would not be of the lineage there."""
        return save in self._done or save[0] in self._steps or save[0] < self._start

    def begins(self, save: Save) -> bool:
        if save in self._parts or save in self._committing or self.done(save):
            return False
        self._parts[save] = {}
        self._since[save] = self._owner.loop.now
        return True

    def take(self, part: dict[str, Any]) -> bool:
        save = (part["step"], part["generation"])
        parts = self._parts.get(save)
        if parts is None:
            return False
        parts[part["rank"]] = part
        if len(parts) < part["world_size"]:
            return False
        self._whole[save] = self._parts.pop(save)
        self._committing.add(save)
        return True

    def commit(self, save: Save) -> None:
        parts = self._whole.pop(save)
        owner = self._owner
        owner.cluster.check.parts(parts)
        chunks = tuple(Chunk(f"{part['state']}-{rank}") for rank, part in sorted(parts.items()))
        manifest = Manifest(save[0], self._term, save[1], parts[0]["state"], chunks)

        def write() -> None:
            if save[0] in self._steps:
                self._decide(save, "")
                return
            try:
                committed = commit_manifest(self._run, manifest)  # type: ignore[arg-type]
            except CheckpointAbandoned as error:
                self._decide(save, str(error))
                return
            owner.cluster.check.manifest_written(self._term, save[0])
            if committed:
                owner.cluster.check.reported(self._term, save[0])
                self._steps.add(save[0])
                self._decide(save, "")
            else:
                owner.post(owner.fence)

        owner.writer.submit(write)

    def _decide(self, save: Save, failure: str) -> None:
        self._done.add(save)
        self._owner.post(self._owner.save_decided, save, failure)

    def abandon(self, save: Save, detail: str) -> None:
        if self._parts.pop(save, None) is not None or self._whole.pop(save, None) is not None:
            self._committing.add(save)
            self._owner.writer.submit(lambda: self._decide(save, detail))

    def abandon_unfinished(self, detail: str, older_than: float = float("inf")) -> None:
        for save in [save for save in self._parts if self._since[save] < older_than]:
            self.abandon(save, detail)


@dataclass
class Rows:
    """Rows wait until every member holds their steps (as runtime.progress does)."""

    taken: int
    passed: int
    waiting: deque[dict[str, Any]]

    def take(self, message: dict[str, Any]) -> None:
        last = message["row"]["step"]
        if last > self.taken and message["first"] <= self.taken + 1:
            self.waiting.append(message)
            self.taken = last

    def restart(self, step: int) -> None:
        while self.waiting and self.waiting[-1]["row"]["step"] > step:
            self.waiting.pop()
        self.taken = self.waiting[-1]["row"]["step"] if self.waiting else self.passed

    def committed(self, step: int) -> list[dict[str, Any]]:
        done = []
        while self.waiting and self.waiting[0]["row"]["step"] <= step:
            done.append(self.waiting.popleft())
            self.passed = done[-1]["row"]["step"]
        return done


def generation_of(message: dict[str, Any]) -> Generation:
    return Generation(message["generation"])
