"""One job through a hundred random changes and faults, against the same job left in peace: `python -m benchmarks.soak`.

The job is the MLP on the digits; its forward passes are slowed down, so that the run lasts, and those of the calm run are not: both
compute the same. `--seed` decides what happens and when. docs/benchmarks.md says what each row means.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import elastic_job
from benchmarks.elastic_job import ENDED, ElasticJob, TookTooLong
from benchmarks.nodes import alive
from benchmarks.report import Bar, Figure, counted, finish
from benchmarks.runs import records
from benchmarks.sandbox import CommandFailed, Sandbox

MOST = 4
PAUSE_S = 0.04
STEPS_PER_S = 12
"""About what the slowed-down job does on the way, with fewer workers than the most now and then: sizes the run, no more."""
START_S = 180.0
SETTLE_S = 90.0
OVERLAP = 0.2
"""How often the next thing happens before the last one is over."""
WINDOWS = 20
SAMPLE_S = 5.0
ACTIONS = {"resize": 40, "kill": 18, "kill_two": 5, "freeze": 12, "drain": 12, "kill_controller": 9, "stop_and_resume": 4}
"""What happens, and how often."""

ACCURACY = 0.02
"""7 of the 355 held-out images: two standard errors of the difference of two runs of the same training at 97 %."""
LOSS = 0.05
"""Of the calm loss, per window of a twentieth of the run: floating-point noise of the reductions separates the runs step by step, their means
over hundreds of steps stay within a few percent (a wrong sample order, learning rate or batch moves the early windows by far more)."""
SOCKETS = 8
MEMORY_BYTES = 64 << 20
"""What a process may gain between the first and the last quarter of its life; a leak of the state or of sockets per change is more."""


@dataclass
class Watched:
    """One process over its life."""

    role: str
    memory: list[int] = field(default_factory=list)
    sockets: list[int] = field(default_factory=list)

    def growth(self, of: list[int]) -> int:
        """From the first to the last quarter, by medians, without the beginning; 0 where its life was too short to say."""
        later = of[2:]
        if len(later) < 12:
            return 0
        quarter = len(later) // 4
        return int(statistics.median(later[-quarter:]) - statistics.median(later[:quarter]))


class Soak:
    def __init__(self, job: ElasticJob, seed: int) -> None:
        self.job = job
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.processes: dict[int, Watched] = {}
        self.frozen: dict[int, float] = {}
        """When each frozen process is to be woken."""
        self._sampled_at = 0.0

    def run(self, changes: int) -> None:
        """Raises TookTooLong when the job does not go on after something, or ended before all was done."""
        while sum(self.done.values()) < changes:
            kind = self.chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            if not getattr(self, f"_{kind}")():
                continue
            self.done[kind] += 1
            _log(f"{sum(self.done.values())}/{changes} {kind}: step {self.job.status().get('step')}")
            self._rest(self.chance.uniform(1.0, 5.0))
            if self.chance.random() >= OVERLAP:
                self._settle()
        self._settle()

    def end(self, patience_s: float) -> dict[str, Any]:
        """Wake all that is frozen, and wait for the end of the run."""
        deadline = time.monotonic() + patience_s
        while (status := self.job.status()).get("state") not in ENDED:
            if time.monotonic() > deadline:
                raise TookTooLong(f"the run has not ended after {patience_s:g} s: {status.get('state')} at step {status.get('step')}")
            self._rest(1.0)
        self._wake(everybody=True)
        return status

    # What happens; False where it cannot just now.

    def _resize(self) -> bool:
        wanted = self.job.status()["workers"]["target"]
        self.job.resize(self.chance.choice([size for size in range(1, MOST + 1) if size != wanted]))
        return True

    def _kill(self) -> bool:
        return self._signal(1, signal.SIGKILL)

    def _kill_two(self) -> bool:
        return self._signal(2, signal.SIGKILL)

    def _drain(self) -> bool:
        return self._signal(1, signal.SIGTERM)

    def _freeze(self) -> bool:
        """For a moment, or for longer than a silent worker is waited for."""
        return self._signal(1, signal.SIGSTOP)

    def _kill_controller(self) -> bool:
        with suppress(ProcessLookupError):
            os.kill(self.job.controller()[1], signal.SIGKILL)
            return True
        return False

    def _stop_and_resume(self) -> bool:
        self._wake(everybody=True)
        self.job.launch("stop", self.job.run_id, "--runs", str(self.job.folder.parent), "-o", "json")
        self.job.launch("resume", self.job.run_id, "-d", "--runs", str(self.job.folder.parent), "-o", "json")
        return True

    def _signal(self, count: int, number: signal.Signals) -> bool:
        """Send it to so many members, of whom at least one is left unhurt."""
        unhurt = [pid for pid in self.job.pids().values() if pid not in self.frozen]
        if len(unhurt) <= count:
            return False
        for pid in self.chance.sample(unhurt, count):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                if number == signal.SIGSTOP:
                    self.frozen[pid] = time.monotonic() + self.chance.choice((0.3, 1.0, 8.0))
        return True

    def _wake(self, *, everybody: bool = False) -> None:
        for pid, due in list(self.frozen.items()):
            if everybody or time.monotonic() >= due:
                del self.frozen[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # Watching.

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._wake()
            self._sample()
            time.sleep(0.1)

    def _settle(self) -> None:
        """Until steps are applied again by a whole group."""
        begun = self.job.status().get("step", 0)
        deadline = time.monotonic() + SETTLE_S
        while True:
            status = self.job.status()
            if status.get("state") in ENDED:
                raise TookTooLong(f"the run ended before all was done: {status['state']}, {status['reason']}")
            if status.get("state") == "RUNNING" and status["world_size"] == status["workers"]["target"] and status["step"] > begun:
                return
            if time.monotonic() > deadline:
                raise TookTooLong(f"after {dict(self.done)} it does not go on: {json.dumps(status)}")
            self._rest(0.3)

    def _sample(self) -> None:
        if time.monotonic() - self._sampled_at < SAMPLE_S:
            return
        self._sampled_at = time.monotonic()
        roles = dict.fromkeys(self.job.pids().values(), "worker")
        with suppress(TookTooLong, FileNotFoundError):
            roles |= dict(zip(self.job.controller(), ("supervisor", "controller"), strict=True))
        for pid, role in roles.items():
            with suppress(OSError):
                watched = self.processes.setdefault(pid, Watched(role))
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                watched.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
                watched.sockets.append(sum(os.readlink(path).startswith("socket:") for path in Path(f"/proc/{pid}/fd").iterdir()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--changes", type=int, default=100, help="changes and faults (default 100)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the run lasts at least, about (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ten changes in a minute or two: shows that it works")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    changes, minutes = (10, 2.0) if options.quick else (options.changes, options.minutes)
    steps = int(minutes * 60 * STEPS_PER_S)
    limit_s = START_S + 3 * minutes * 60 + changes * 10
    with Sandbox() as sandbox:
        ray = sandbox.ray_folder("s")
        began = time.monotonic()
        soak = Soak(elastic_job.start(sandbox, ray, overrides(steps, PAUSE_S), workers=(1, MOST, 3)), options.seed)
        soak.job.wait_for_size(3)
        soak.run(changes)
        hurt = soak.end(limit_s - (time.monotonic() - began))
        seconds = time.monotonic() - began
        calm_job = elastic_job.start(sandbox, ray, overrides(steps, 0.0), workers=(1, MOST, 2))
        calm = calm_job.wait("the end of the calm run", lambda status: status["state"] in ENDED, limit_s)
        figures = [
            *ends(hurt, calm, seconds, sum(soak.done.values()), changes, minutes),
            *curves(soak.job, calm_job),
            *ledger(soak.job, steps),
            *leaks(sandbox, ray, soak),
        ]
    settings = {
        "benchmark": "soak",
        "seed": options.seed,
        "steps": steps,
        "changes": dict(soak.done),
        "limit_s": limit_s,
        "state": {"soak": hurt["state"], "reason": hurt["reason"], "calm": calm["state"]},
        "steps_lost": hurt["steps_lost"],
        "samples_repeated": hurt["samples_repeated"],
    }
    return finish(figures, settings, options.output)


def overrides(steps: int, pause_s: float) -> dict[str, str]:
    return {
        "+model": "mlp",
        "model._target_": "timed.PacedMLP",
        "+model.pause_s": str(pause_s),
        "data": "digits",
        "task.label_smoothing": "0.1",  # so that the loss does not vanish, and there is something to compare to the end
        "optimizer": "sgd",
        "optimizer.lr": "0.01",
        "tracking": "none",
        "trainer.epochs": "null",
        "trainer.steps": str(steps),
        "trainer.global_batch_size": "64",
        "trainer.micro_batch_size": "8",
        "trainer.log_every_steps": "10",
        "checkpoint.every_steps": "100",
        "resources.threads": "1",
        "elastic.cooldown_s": "2",
    }


def ends(hurt: dict[str, Any], calm: dict[str, Any], seconds: float, done: int, changes: int, minutes: float) -> list[Figure]:
    if calm["state"] != "SUCCEEDED":
        raise CommandFailed(f"the calm run is {calm['state']}: {calm['reason']}")
    off = abs(hurt["metrics"].get("accuracy", 0.0) - calm["metrics"]["accuracy"])
    return [
        counted("soak: the job succeeded", "jobs", int(hurt["state"] == "SUCCEEDED"), Bar(1, "at_least", "value")),
        counted("soak: changes and faults", "changes", done, Bar(changes, "at_least", "value")),
        counted("soak: length", "s", seconds, Bar(minutes * 60, "at_least", "value")),
        counted("soak: held-out accuracy off the calm run", "1", off, Bar(ACCURACY, "at_most", "value")),
    ]


def curves(hurt: ElasticJob, calm: ElasticJob) -> list[Figure]:
    """The largest distance of the two loss curves, of means over windows of a twentieth of the run."""
    ours, theirs = losses(hurt), losses(calm)
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 0.9 * len(theirs):
        raise CommandFailed(f"the runs have {len(ours)} and {len(theirs)} rows of metrics, and {len(common)} of the same steps")
    size = max(1, len(common) // WINDOWS)
    windows = [common[begin : begin + size] for begin in range(0, len(common), size)]
    means = [(statistics.fmean(ours[step] for step in window), statistics.fmean(theirs[step] for step in window)) for window in windows]
    return [
        counted(
            "soak: loss curve off the calm run", "of it", max(abs(our / their - 1) for our, their in means), Bar(LOSS, "at_most", "value")
        )
    ]


def losses(job: ElasticJob) -> dict[int, float]:
    """By step; where a step was taken again in a later term, the later one counts."""
    return {row["step"]: row["loss"] for row in records(job.folder, "metrics") if row.get("samples_per_s") is not None}


def ledger(job: ElasticJob, steps: int) -> list[Figure]:
    """Steps and samples that the run's own record has not exactly once, in order, along the lineage of its terms."""
    printed = elastic_job.launch(
        job.sandbox, job.ray, job.host, ["events", job.run_id, "--runs", str(job.folder.parent), "-o", "json"]
    ).splitlines()
    ranges = [event for event in map(json.loads, printed) if event["kind"] == "steps"]
    covered = [step for event in ranges for step in range(event["first"], event["last"] + 1)]
    expected = list(range(1, steps + 1))
    wrong = sum(have != wanted for have, wanted in zip(covered, expected, strict=False)) + abs(len(covered) - len(expected))
    borders = [event["samples"] for event in ranges]
    torn = sum(left[1] != right[0] for left, right in pairwise(borders)) + int(not borders or borders[0][0] != 0)
    return [
        counted("soak: steps not exactly once in the ledger", "steps", wrong, Bar(0, "at_most", "value")),
        counted("soak: borders at which samples are lost or repeated", "borders", torn, Bar(0, "at_most", "value")),
    ]


def leaks(sandbox: Sandbox, ray: Path, soak: Soak) -> list[Figure]:
    """Processes of the run that live on when it has ended; what a process gained in its life."""
    deadline = time.monotonic() + 30.0
    while (left := [pid for pid in soak.job.seen | soak.processes.keys() if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    sandbox.stop_ray(ray)
    while (marked := sandbox.marked()) and time.monotonic() < deadline + 30.0:
        time.sleep(0.5)
    watched = soak.processes.values()
    memory = max((each.growth(each.memory) for each in watched), default=0)
    sockets = max((each.growth(each.sockets) for each in watched), default=0)
    return [
        counted("soak: workers and controllers left", "processes", len(left), Bar(0, "at_most", "value")),
        counted("soak: processes left after Ray's end", "processes", len(marked), Bar(0, "at_most", "value")),
        counted("soak: most memory that a process gained", "bytes", memory, Bar(MEMORY_BYTES, "at_most", "value")),
        counted("soak: most sockets that a process gained", "sockets", sockets, Bar(SOCKETS, "at_most", "value")),
    ]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
