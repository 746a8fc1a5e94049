"""Looks at the run store for what others write: new wishes, and a higher term."""

from __future__ import annotations

import threading
from collections.abc import Callable

from launcher.core.errors import LauncherError, StoreUnavailable
from launcher.core.types import Term
from launcher.record.desired import Desired
from launcher.record.run_store import RunStore

INTERVAL_S = 1.0


class StoreWatcher:
    def __init__(
        self,
        run: RunStore,
        term: Term,
        revision: int,
        *,
        wished: Callable[[Desired], None],
        fenced: Callable[[], None],
        failed: Callable[[LauncherError], None],
    ) -> None:
        """`revision`: of the wish that is known. All are called on this watcher's thread, `fenced` as long as a higher term is there."""
        self.term = term
        self._run, self._wished, self._fenced, self._failed = run, wished, fenced, failed
        self._revision = revision
        self._ended = threading.Event()
        threading.Thread(target=self._serve, name="watcher", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _serve(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                self._look()
            except StoreUnavailable:
                continue  # whoever writes says so; looking again is all there is to do here
            except LauncherError as error:
                self._failed(error)
                return

    def _look(self) -> None:
        desired = self._run.desired()
        if desired is not None and desired.revision > self._revision:
            self._revision = desired.revision
            self._wished(desired)
        if self._run.highest_term() > self.term:
            self._fenced()
