"""The one thread of a controller that writes to the run store, in the order in which it was asked to. Runs in the controller process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from launcher.core.errors import LauncherError, StoreUnavailable
from launcher.core.store import is_local

REMOTE_PATIENCE_S = 120.0
"""An object store that is away comes back."""
LOCAL_PATIENCE_S = 10.0
"""A full disk may have room again when the part of a checkpoint that did not fit is abandoned; else the job says so."""


class StoreWriter:
    def __init__(self, uri: str, failed: Callable[[LauncherError], None]) -> None:
        """`failed` is told why something could not be written, on the writer's thread."""
        self._patience_s = LOCAL_PATIENCE_S if is_local(uri) else REMOTE_PATIENCE_S
        self._tell_failed = failed
        self.failed = False
        """Something was not written."""
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="store-writer", daemon=True).start()

    def submit(self, write: Callable[[], None]) -> None:
        """Call `write` after all that was submitted before. It must be safe to repeat; StoreUnavailable repeats it for a while."""
        self._work.put(write)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was submitted is written; False where it failed, or takes longer than `timeout_s` seconds."""
        done = threading.Event()
        self.submit(done.set)
        self.failed = not done.wait(timeout_s) or self.failed
        return not self.failed

    def _serve(self) -> None:
        while True:
            write = self._work.get()
            deadline = time.monotonic() + self._patience_s
            pause_s = 0.2
            while True:
                try:
                    write()
                    break
                except StoreUnavailable as error:
                    if time.monotonic() + pause_s > deadline:
                        self._fail(error)
                        break
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, 5.0)
                except LauncherError as error:
                    self._fail(error)
                    break
                except Exception as error:  # noqa: BLE001 - a defect must end the job with its name, not this thread in silence
                    self._fail(LauncherError(f"writing the record failed: {type(error).__name__}: {error}"))
                    break

    def _fail(self, error: LauncherError) -> None:
        self.failed = True
        self._tell_failed(error)
