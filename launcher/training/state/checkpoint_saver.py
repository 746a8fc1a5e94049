"""Saving this rank's part of a checkpoint: staged at the step's boundary, uploaded by one thread while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from launcher.checkpoint.manifest import CheckpointPart
from launcher.checkpoint.writer import PartWriter
from launcher.core.types import Generation, JsonObject, Rank, Step, WorldSize
from launcher.record.run_store import RunStore
from launcher.training.comm.collective import Collective


class CheckpointSaver:
    """At most one part is under way; the next one waits for it."""

    def __init__(
        self, run: RunStore, saved: Callable[[CheckpointPart, float], None], failed: Callable[[int, int, Exception], None]
    ) -> None:
        """`saved`: called on the saving thread, with the part and the seconds since `save`; `failed`: with step, generation and error."""
        self._writer = PartWriter(run)
        self._saved = saved
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save-checkpoint")
        self._under_way: Future[Exception | None] | None = None
        self.last_step: int | None = None
        """The last step that was asked to be saved, or restored from."""

    def save(self, tensors: Mapping[str, Tensor], document: JsonObject, step: int, collective: Collective) -> None:
        """Take the state as it is now, after `step` steps; returns before it is durable.

        Raises UserCodeError for a tensor that cannot be stored. Whether it becomes durable, `saved` and `failed` are told.
        """
        self.wait()
        began = time.perf_counter()
        try:
            staged = self._writer.stage(
                tensors,
                document,
                step=Step(step),
                generation=Generation(collective.generation),
                rank=Rank(collective.rank),
                world_size=WorldSize(collective.world_size),
            )
        except Exception as error:
            self._failed(step, collective.generation, error)
            raise
        self.last_step = step

        def upload() -> Exception | None:
            try:
                part = self._writer.upload(staged)
                self._saved(part, time.perf_counter() - began)
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                self._failed(step, staged.generation, error)
                return error
            return None

        self._under_way = self._thread.submit(upload)

    def wait(self) -> Exception | None:
        """Wait until nothing is under way; why the last part could not be saved, or None."""
        if self._under_way is None:
            return None
        error = self._under_way.result()
        self._under_way = None
        if error is not None:
            self.last_step = None
        return error
