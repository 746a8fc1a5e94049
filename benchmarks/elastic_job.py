"""One elastic job of a benchmark: started, resized and stopped by the real command, watched by its files, hurt by pid.

Watching reads the run store and the steps that the timed model wrote, so that it takes no time from what is measured.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.nodes import Host
from benchmarks.pauses import read_steps
from benchmarks.runs import records, seconds_of
from benchmarks.sandbox import LAUNCH, PEERS, CommandFailed, Sandbox

POLL_S = 0.1
COMMAND_S = 180.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class TookTooLong(Exception):
    """The job did not come to what the benchmark waited for."""


@dataclass
class ElasticJob:
    """Made by `start`; `members` and the other facts are those of the newest status."""

    sandbox: Sandbox
    ray: Path
    run_id: str
    host: Host | None
    log: Path
    """Where the timed model writes."""
    seen: set[int] = field(default_factory=set)
    """Every worker's pid that was ever in a status."""

    @property
    def folder(self) -> Path:
        return self.sandbox.folder / "runs" / self.run_id

    def status(self) -> dict[str, Any]:
        """The newest that a controller wrote; {} before the first."""
        for path in sorted((self.folder / "status").glob("*.json"), reverse=True):
            try:
                document: dict[str, Any] = json.loads(path.read_text())
            except (json.JSONDecodeError, FileNotFoundError):
                continue  # being written
            self.seen |= {member["pid"] for member in document["members"] if member["pid"]}
            return document
        return {}

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """All of them, or those of some kinds; each with `at`, its moment as time.monotonic()."""
        offset = time.time() - time.monotonic()
        found = records(self.folder, "events")
        return [{**event, "at": seconds_of(event["time"]) - offset} for event in found if not kinds or event["kind"] in kinds]

    def steps(self) -> dict[int, list[float]]:
        return read_steps(self.log)

    def pids(self) -> dict[int, int]:
        """Pid by rank."""
        return {member["rank"]: member["pid"] for member in self.status()["members"]}

    def wait(self, what: str, condition: Callable[[dict[str, Any]], Any], patience_s: float) -> dict[str, Any]:
        """Poll the status until it is so. Raises TookTooLong, also when the run has ended before."""
        deadline = time.monotonic() + patience_s
        while True:
            status = self.status()
            if status and condition(status):
                return status
            state, reason = status.get("state", "PENDING"), status.get("reason", "")
            if state in ENDED or time.monotonic() > deadline:
                newest = "\n".join(json.dumps(event) for event in self.events() if event["kind"] != "steps")[-3000:]
                raise TookTooLong(
                    f"{what}: the run is {state} ({reason}) at step {status.get('step')}, {status.get('world_size')} workers\n{newest}"
                )
            time.sleep(POLL_S)

    def wait_for_size(self, size: int, patience_s: float = COMMAND_S) -> dict[str, Any]:
        return self.wait(f"{size} workers", lambda status: status["state"] == "RUNNING" and status["world_size"] == size, patience_s)

    def wait_for_change(self, size: int, since: float, patience_s: float, victim: str | None = None) -> dict[str, Any]:
        """The event of the first change after the moment that led to `size`, or that the victim left with. Raises TookTooLong."""
        found: list[dict[str, Any]] = []

        def changed(status: dict[str, Any]) -> bool:
            new = [event for event in self.events("resized") if event["at"] > since]
            found[:] = [event for event in new if event["to_size"] == size or (victim is not None and victim in event.get("left", ()))]
            return bool(found)

        self.wait(f"a change to {size} workers", changed, patience_s)
        return found[0]

    def resize(self, size: int) -> None:
        self.launch("resize", self.run_id, str(size), "--no-wait", "--runs", str(self.folder.parent), "-o", "json")

    def stop(self) -> None:
        self.launch("stop", self.run_id, "--runs", str(self.folder.parent), "-o", "json")
        shutil.rmtree(self.log, ignore_errors=True)

    def controller(self) -> tuple[int, int]:
        """Pids of the supervisor and the controller, by the records that the local backend keeps."""
        for record in (self.ray / "jobs").glob("*.json"):
            document = json.loads(record.read_text())
            if document["run_id"] == self.run_id:
                return document["supervisor"]["pid"], json.loads(record.with_suffix(".controller").read_text())["pid"]
        raise TookTooLong(f"no record of {self.run_id} in {self.ray / 'jobs'}")

    def launch(self, *arguments: str) -> Any:
        """Run the command on the job's host to its end; the one JSON object that it printed."""
        return json.loads(launch(self.sandbox, self.ray, self.host, arguments))


def launch(sandbox: Sandbox, ray: Path, host: Host | None, arguments: Sequence[str]) -> str:
    command = [LAUNCH, *arguments]
    return sandbox.run(host.command(command) if host else command, timeout_s=COMMAND_S, more={"LAUNCHER_RAY_DIR": str(ray)}).output


def start(
    sandbox: Sandbox, ray: Path, overrides: Mapping[str, str], *, workers: tuple[int, int, int], host: Host | None = None
) -> ElasticJob:
    """Submit a job with the timed model; `workers` are the bounds and the target. It returns before the first step."""
    shutil.copy(PEERS / "timed.py", sandbox.project / "timed.py")
    log = sandbox.folder / f"steps-{time.monotonic_ns()}"
    log.mkdir()
    least, most, target = workers
    words = [f"{key}={value}" for key, value in overrides.items()]
    words += [f"+model.log={log}", f"runs={sandbox.folder / 'runs'}", f"workers={{min:{least},max:{most},target:{target}}}"]
    submitted = json.loads(launch(sandbox, ray, host, ["train", "-d", *words, "-o", "json"]))
    if "run_id" not in submitted:
        raise CommandFailed(f"launch train -d printed {submitted}")
    return ElasticJob(sandbox=sandbox, ray=ray, run_id=submitted["run_id"], host=host, log=log)
