"""Which process is meant: a pid alone may be given to another one later, so the start time goes with it. And the variables of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import convert

from launcher.core.types import JsonObject


@dataclass(frozen=True)
class ProcessRef:
    pid: int
    started: str
    """Start time as the system tells it; comparable on this machine until it restarts."""
    boot: str

    def to_json(self) -> JsonObject:
        document: JsonObject = asdict(self)
        return document

    @classmethod
    def from_json(cls, document: object) -> ProcessRef:
        """Raises msgspec.ValidationError where it is not what `to_json` gave."""
        return convert(document, cls)

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """The process that has this pid now; one that is not alive where there is none."""
        return cls(pid, _start_time(pid) or "", _boot_id())

    def alive(self) -> bool:
        """Whether exactly this process runs (a zombie does not)."""
        return self.boot == _boot_id() and _start_time(self.pid) == self.started != ""

    def signal(self, number: signal.Signals) -> None:
        """Does nothing when the process is gone."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, *, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL after the grace; True when the process is gone."""
        for sign, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if not self.alive():
                return True
            try:
                os.kill(self.pid, sign)
            except ProcessLookupError:
                return True
            deadline = time.monotonic() + wait_s
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.05)
        return not self.alive()


def set_variables(variables: Mapping[str, str]) -> None:
    """Set environment variables of this process, which those have that it starts. One that has its value already is left as it is."""
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if "TZ" in variables:
        time.tzset()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=False).stdout.strip()


def _start_time(pid: int) -> str | None:
    """None when there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        answer = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
        return answer[1:].strip() if answer and not answer.startswith("Z") else None
    return fields[19] if fields[0] not in ("Z", "X") else None
