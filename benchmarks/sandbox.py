"""A place of its own for one benchmark: short folders, marked processes, and nothing left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MARK = "LAUNCHER_BENCHMARK"
ROOT = Path(__file__).resolve().parent.parent
LAUNCH = str(Path(sys.executable).with_name("launch"))
PEERS = ROOT / "benchmarks" / "peers"


class CommandFailed(Exception):
    """A measured command did not do what it was to do; its last words are in the message."""


@dataclass(frozen=True)
class Done:
    output: str
    started_at: float
    """Wall clock, seconds since 1970, just before the process was made."""
    seconds: float


class Sandbox:
    """`folder` is under the system's temporary folder, short enough for Ray's sockets; `project` in it is an empty working folder.

    Every process started here carries a mark in its environment, which its descendants inherit: on Linux whatever
    still carries it at `sweep` is killed. Elsewhere only the local Ray is ended, by its own command.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lb", dir="/tmp" if Path("/tmp").is_dir() else None))
        self.project = self.folder / "project"
        self.project.mkdir()
        self._mark = secrets.token_hex(8)
        self._rays: list[Path] = []

    def __enter__(self) -> Sandbox:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started is ended then, too
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for ray in list(self._rays):
            self.stop_ray(ray)
        self.sweep()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ray_folder(self, name: str) -> Path:
        """A folder for a local Ray of our own (LAUNCHER_RAY_DIR), not started yet."""
        path = self.folder / name
        self._rays.append(path)
        return path

    def stop_ray(self, path: Path) -> None:
        """End the local Ray of a folder and remove it."""
        if path.is_dir():
            self.run(
                [sys.executable, "-m", "launcher.backends.local.ray_instance", "stop"],
                more={"LAUNCHER_RAY_DIR": str(path)},
                timeout_s=60,
                check=False,
            )
        self._rays.remove(path)
        shutil.rmtree(path, ignore_errors=True)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        more: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> Done:
        """Run a command to its end, its output kept. Raises CommandFailed where it fails or takes longer than `timeout_s`."""
        environment = self.environment(more or {})
        started_at, start = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd or self.project,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            raise CommandFailed(f"{' '.join(command)}\nwas not done after {timeout_s:g} s\n{_end_of(errors)}") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - start
        if check and process.returncode != 0:
            raise CommandFailed(f"{' '.join(command)}\nended with {process.returncode}\n{_end_of(errors or output)}")
        return Done(output, started_at, seconds)

    def sweep(self) -> None:
        """Kill what is left of the marked processes."""
        for _ in range(50):
            left = self.marked()
            if not left:
                return
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)

    def marked(self) -> list[int]:
        """Pids of all processes that were started here, and of theirs, which live. Linux only."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue  # ended meanwhile, or another user's
        return found

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """What processes of this benchmark run in: marked, and without what the caller's shell says of the same things."""
        # What the caller's shell says about Ray, W&B or runs must not change what is measured.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "LAUNCHER_", "WANDB_", "HYDRA_")) and name not in ("PYTHONPATH", "OMP_NUM_THREADS")
        }
        return {**kept, "RAY_USAGE_STATS_ENABLED": "0", MARK: self._mark, **more}


def in_turn(rounds: int, measures: Mapping[str, Callable[[], float]], log: Callable[[str], None]) -> dict[str, list[float]]:
    """Measure each in every round, forwards and backwards in turn, so that neighbours in time are compared and no order is favoured."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures) if number % 2 == 0 else reversed(list(measures)):
            found[name].append(measures[name]())
            log(f"{number + 1}/{rounds} {name}: {found[name][-1]:.4g}")
    return found


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
