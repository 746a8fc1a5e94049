"""Background processes of the test cluster, each with a log and a record by which a later command finds exactly it again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.core.process import ProcessRef

START_S = 60.0


class Processes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        ready: Callable[[], bool] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it unless it runs; wait until it is `ready`. Raises RuntimeError with the end of its log when it ends or takes too long."""
        if not self.alive(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.log(name).open("ab") as log:
                process = subprocess.Popen(
                    [os.fspath(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )
            self._record(name).write_text(json.dumps(ProcessRef.of(process.pid).to_json()))
        if ready is not None:
            self.wait(name, ready)

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if not self.alive(name) or time.monotonic() > deadline:
                said = self.log(name).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} {'takes too long' if self.alive(name) else 'has ended'}:\n{said}")
            time.sleep(0.1)

    def alive(self, name: str) -> bool:
        process = self.find(name)
        return process is not None and process.alive()

    def end(self, name: str, *, grace_s: float) -> None:
        process = self.find(name)
        if process is not None:
            process.end(grace_s=grace_s)
            self._record(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Of those that were started and not ended, in the order in which they were started."""
        records = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [path.stem for path in records]

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _record(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def find(self, name: str) -> ProcessRef | None:
        try:
            return ProcessRef.from_json(json.loads(self._record(name).read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
