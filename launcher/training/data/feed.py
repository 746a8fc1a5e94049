"""The batches of a rank, in the order in which its forward passes want them: read on the spot, or ahead by processes.

A piece is what one process is asked for at once: samples of one step, or of one chunk of the held-out split. It is as small as lets all
processes work on a step together; samples that have to be read together stay in one piece.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from launcher.training.data.batches import Batch, Part, assembled
from launcher.training.data.data_order import DataOrder
from launcher.training.data.reading_process import Group
from launcher.training.data.reading_processes import Reading, ReadingProcesses
from launcher.training.data.samples import Samples, read_forward
from launcher.training.shards.batch import BatchPlan

PIECES = 2
"""Pieces of a step for each process: after a change, a piece of the larger share before it takes no longer than a share after it."""
STEPS_AHEAD = 2
"""How far is read beyond the step that is taken; further where that would leave a process without two pieces."""


@dataclass(frozen=True)
class _Piece:
    positions: range
    """In the batch of its step, or in the held-out split."""
    groups: tuple[range, ...]
    """The samples of each batch that is read for it."""
    reading: Reading

    def parts(self) -> list[Part]:
        return list(zip(self.groups, self.reading.batches(), strict=True))


class TrainingFeed:
    """The batches of one rank's forward passes, step after step. `begin` in each generation, then `step` for one step after the other."""

    def __init__(self, samples: Samples, order: DataOrder, plan: BatchPlan, *, end: int, processes: ReadingProcesses | None) -> None:
        """`end`: the number of steps in all, nothing is read for later ones; `processes`: None where they are read on the spot."""
        self._samples = samples
        self._order = order
        self._plan = plan
        self._end = end
        self._processes = None if samples.immediate else processes
        self._pieces: dict[int, list[_Piece]] = {}
        """Of each step, what was asked for."""
        self._asked_at = 0
        """The step that was taken last."""
        self.forwards: tuple[range, ...] = ()
        """The shards of each forward pass of this rank."""
        self.waited_s = 0.0
        """Seconds for which batches were waited for in all, or read on the spot."""

    def begin(self, forwards: tuple[range, ...]) -> None:
        """From now on these are the rank's forward passes. What was read for them already is kept.

        What is being read is kept for the next step only: for later ones it is asked for anew, behind what is missing of the next.
        """
        self.forwards = forwards
        wanted = self._positions(forwards)
        for step, pieces in self._pieces.items():
            kept = []
            for piece in pieces:
                fits = _overlap(piece.positions, wanted)
                if fits and (piece.reading.done or (step <= self._asked_at + 1 and not piece.reading.cancel())):
                    kept.append(piece)
                else:
                    piece.reading.abandon()
            self._pieces[step] = kept

    def step(self, step: int) -> Iterator[Batch]:
        """The batches of a step, one for each of `forwards`; rows as in `read_forward`. Raises what reading them raised."""
        if self._processes is not None:
            self._ask(step, self._processes)
        return self._timed(self._batch(step, shards) for shards in self.forwards)

    def _ask(self, step: int, processes: ReadingProcesses) -> None:
        """For what is missing of this step and those after it, in their order."""
        self._pieces = {later: pieces for later, pieces in self._pieces.items() if later >= step}
        self._asked_at = step
        wanted = self._positions(self.forwards)
        together = self._plan.micro_batch_size if self._samples.in_groups else None
        size = _piece_size(len(wanted), together, processes.count)
        for later in range(step, min(step + _ahead(len(wanted), size, processes.count) + 1, self._end)):
            pieces = self._pieces.setdefault(later, [])
            for gap in _gaps(wanted, [piece.positions for piece in pieces]):
                pieces += _asked(processes, self._samples.where, _cut(gap, size), together, partial(self._group, later))
            pieces.sort(key=lambda piece: piece.positions.start)

    def _group(self, step: int, positions: range) -> Group:
        first = step * self._plan.global_batch_size
        return self._order.at(np.arange(first + positions.start, first + positions.stop))

    def _batch(self, step: int, shards: range) -> Batch:
        if self._processes is None:
            return read_forward(self._samples, self._order, self._plan, step, shards)
        wanted = self._positions((shards,))
        pieces = [piece for piece in self._pieces[step] if _overlap(piece.positions, wanted)]
        parts = [part for piece in pieces for part in piece.parts() if _overlap(part[0], wanted)]
        return _on_device(self._samples, parts, wanted, self._plan.micro_batch_size)

    def _positions(self, forwards: tuple[range, ...]) -> range:
        micro = self._plan.micro_batch_size
        return range(forwards[0].start * micro, forwards[-1].stop * micro)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def evaluation_batches(samples: Samples, chunks: Sequence[range], processes: ReadingProcesses | None) -> Iterator[Batch]:
    """A batch for each of the chunks, which are ranges of indices. Raises what reading them raised."""
    if processes is None or samples.immediate:
        for chunk in chunks:
            yield samples.read(np.arange(chunk.start, chunk.stop, dtype=np.int64))
        return
    waiting = deque(chunks)
    asked: deque[tuple[range, list[_Piece]]] = deque()
    try:
        while waiting or asked:
            together = len(chunks[0]) if samples.in_groups else None
            size = _piece_size(len(chunks[0]), together, processes.count)
            while waiting and len(asked) <= _ahead(len(chunks[0]), size, processes.count):
                chunk = waiting.popleft()
                asked.append((chunk, _asked(processes, samples.where, _cut(chunk, size), together, _held_out)))
            chunk, pieces = asked.popleft()
            yield _on_device(samples, [part for piece in pieces for part in piece.parts()], chunk, len(chunk))
    finally:
        for _, pieces in asked:
            for piece in pieces:
                piece.reading.abandon()


def _held_out(indices: range) -> Group:
    return np.arange(indices.start, indices.stop, dtype=np.int64), None


def _asked(
    processes: ReadingProcesses, split: str, pieces: list[range], together: int | None, group: Callable[[range], Group]
) -> list[_Piece]:
    """`together`: how many samples make a batch of their own; None: that does not matter, and those of a piece are one."""
    found = []
    for positions in pieces:
        groups = tuple(_cut(positions, together)) if together is not None else (positions,)
        found.append(_Piece(positions, groups, processes.read(split, [group(part) for part in groups])))
    return found


def _on_device(samples: Samples, parts: list[Part], wanted: range, micro_batch_size: int) -> Batch:
    return samples.moved(assembled(parts, wanted, micro_batch_size, where=samples.where, pinned=samples.pinned))


def _piece_size(samples: int, together: int | None, processes: int) -> int:
    """Of so many samples, those of one process's piece."""
    together = together or 1
    return -(-samples // (together * processes * PIECES)) * together


def _ahead(samples: int, size: int, processes: int) -> int:
    """How many steps, or chunks, of so many samples are read beyond the present one."""
    return max(STEPS_AHEAD, -(-2 * processes // -(-samples // size)))


def _cut(positions: range, size: int) -> list[range]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _overlap(first: range, second: range) -> bool:
    return first.start < second.stop and second.start < first.stop


def _gaps(wanted: range, covered: list[range]) -> list[range]:
    """What of `wanted` is in none of the others."""
    gaps = []
    start = wanted.start
    for part in sorted(covered, key=lambda part: part.start):
        if part.start > start:
            gaps.append(range(start, min(part.start, wanted.stop)))
        start = max(start, part.stop)
    if start < wanted.stop:
        gaps.append(range(start, wanted.stop))
    return [gap for gap in gaps if gap]
