"""Looks at the run store for what others write: a new desired state, and a higher term. Runs in the controller process, on a thread of its own."""

from __future__ import annotations

import threading

from launcher.core.errors import LauncherError, StoreUnavailable
from launcher.record.run_store import RunStore
from launcher.runtime.controller.inbox import DesiredChanged, HigherTermSeen, Inbox, StoreFailed
from launcher.runtime.controller.leadership import Leadership

INTERVAL_S = 1.0


class StoreWatcher:
    def __init__(self, run: RunStore, leadership: Leadership, inbox: Inbox) -> None:
        self._run, self._leadership, self._inbox = run, leadership, inbox
        self._revision = leadership.desired.revision
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._serve, name="store watcher", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _serve(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                self.look()
            except StoreUnavailable:
                continue  # whoever writes says so; looking again is all there is to do here
            except LauncherError as error:
                self._inbox.put(StoreFailed(error))
                return

    def look(self) -> None:
        """Once. Raises StoreUnavailable, and StoreDamaged where an object is not what was written there."""
        desired = self._run.desired()
        if desired is not None and desired.revision > self._revision:
            self._revision = desired.revision
            self._inbox.put(DesiredChanged(desired))
        if self._run.highest_term() > self._leadership.term:
            self._inbox.put(HigherTermSeen())
