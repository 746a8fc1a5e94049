"""Start and growth of a job on a KubeRay cluster, against Ray Train in a RayJob by hand: `python -m benchmarks.kuberay`.

docs/benchmarks.md says what each figure means. Times of one measurement are clocks of one machine, or of machines whose clocks agree.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.pauses import NothingMeasured, pause_of_job
from benchmarks.rayjobs import STEPS_FOLDER, KubeRay, moments, newest
from benchmarks.report import Bar, Figure, against_itself, alone, apart, compare, finish
from benchmarks.runs import seconds_of
from benchmarks.sandbox import LAUNCH, PEERS, CommandFailed, Sandbox, in_turn
from launcher.core.errors import StoreUnavailable
from launcher.core.store import KeyMissing

JOB = ("+model=resnet", "data=digits", "optimizer=sgd", "scheduler=none", "tracking=none", "trainer.steps=1000000", "trainer.epochs=null")
TIMED = ("model._target_=timed.TimedResNet", f"+model.log={STEPS_FOLDER}")
CHECKPOINT_EVERY = 20
COMMAND_S = 180.0
START_S = 400.0
GROW_S = 600.0
CALM_S = 20.0
"""Seconds of undisturbed steps before a change: on half a core a step takes one and more."""
AFTER_S = 5.0
POLL_S = 0.5
TRIES = 3
CASES = ("start", "grow")
Found = TypeVar("Found")
PEER = "Ray Train in a RayJob"


class NotInTime(Exception):
    """A job did not come to what was waited for."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kuberay", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="only this part; may be given several times")
    parser.add_argument("--n", type=int, default=6, help="measurements of each case and side, one to three minutes each (default 6)")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    cases = options.case or list(CASES)
    figures: list[Figure] = []
    with Sandbox() as sandbox, KubeRay(sandbox) as cluster:
        bench = Bench(sandbox, cluster)
        if "start" in cases:
            figures += bench.start(options.n)
        if "grow" in cases:
            figures += bench.grow(options.n)
    settings = {"benchmark": "kuberay", "cases": cases, "n": options.n, "job": JOB, "measured": bench.measured, "repeated": bench.repeated}
    return finish(figures, settings, options.output)


class Bench:
    def __init__(self, sandbox: Sandbox, cluster: KubeRay) -> None:
        self._sandbox = sandbox
        self._cluster = cluster
        self._number = 0
        self.measured: list[dict[str, Any]] = []
        self.repeated: list[str] = []
        """Why measurements were thrown away and taken again."""
        shutil.copy(PEERS / "timed.py", sandbox.project / "timed.py")

    def start(self, n: int) -> list[Figure]:
        """From the command to the first step done, with one worker."""
        self._cluster.give_peer(self._configuration(JOB))
        name = "command to first step, one worker"
        found = in_turn(n, {name: self._again(self._start_ours), PEER: self._again(self._start_peer)}, _log)
        same = against_itself(name, "s", PEER, found[PEER], more_is_better=False)
        bar = Bar(1.1, "at_most")
        return [compare(name, "s", found[name], PEER, found[PEER], bar, more_is_better=False), *([same] if same else [])]

    def grow(self, n: int) -> list[Figure]:
        """The pause of a growth by one worker, and the time from the request to the first step with it."""
        self._cluster.give_peer(self._configuration((*JOB, *TIMED)))
        name = "grow 1->2: pause"
        found = in_turn(n, {name: self._again(self._grow_ours), PEER: self._again(self._grow_peer)}, _log)
        took = {
            side: [row["first_step_s"] for row in self.measured if row["case"] == "grow" and row["side"] == side]
            for side in ("ours", "peer")
        }
        told = [row["event"]["pause_s"] for row in self.measured if row["case"] == "grow" and row["side"] == "ours"]
        return [
            apart(name, "s", found[name], PEER, found[PEER], Bar(0.1, "at_most")),
            alone(f"{name}, as the run's event says it", "s", told, more_is_better=False),
            compare("grow 1->2: request to first step", "s", took["ours"], PEER, took["peer"], more_is_better=False),
        ]

    def _again(self, measure: Callable[[str], float]) -> Callable[[], float]:
        """A measurement with a name of its own, taken again where the cluster took its job away; its RayJob is gone afterwards."""

        def tried() -> float:
            for left in reversed(range(TRIES)):
                self._number += 1
                name = f"m{self._number}"
                try:
                    return measure(name)
                except (CommandFailed, NotInTime, NothingMeasured) as error:
                    if not left:
                        raise
                    self.repeated.append(f"{type(error).__name__}: {error}")
                    _log(f"again, because of {self.repeated[-1]}")
                finally:
                    self._cluster.clear()
            raise AssertionError

        return tried

    # start

    def _start_ours(self, name: str) -> float:
        began, run = self._submit(name, JOB, "1..1")
        event = self._event(run, "first_step", began, START_S)
        seconds = seconds_of(event["at"]) - began
        kinds = ("term_started", "worker_started", "worker_ready", "generation_formed")
        told = {kind: newest(self._events(run), kind) for kind in kinds}
        parts = {kind: event["time"] for kind, event in told.items() if event}
        self._keep("start", "ours", seconds, parts=moments({**self._cluster.stages(run), **parts}, began))
        return seconds

    def _start_peer(self, name: str) -> float:
        began = self._cluster.apply("rayjob.json", self._cluster.peer(name, most=1, checkpoint_every=CHECKPOINT_EVERY)).started_at
        seconds = self._first_step_of_peer(name, 1, START_S) - began
        self._keep("start", "peer", seconds, parts=moments(self._cluster.stages(name), began))
        return seconds

    # growth

    def _grow_ours(self, name: str) -> float:
        began, run = self._submit(name, (*JOB, *TIMED, f"checkpoint.every_steps={CHECKPOINT_EVERY}"), "1..1")
        self._event(run, "first_step", began, START_S)
        pod = self._calm(run)
        at = self._sandbox.run(
            [LAUNCH, "resize", run, "1..2", "--no-wait", "--runs", self._cluster.runs, "-o", "json"],
            timeout_s=COMMAND_S,
            more=self._cluster.environment,
        ).started_at
        event = self._event(run, "resized", at, GROW_S)
        time.sleep(AFTER_S)
        resumed = seconds_of(event["time"])
        # Both sides by the pod that is there before and after, and by the longest distance of two steps while the change goes on.
        pause = pause_of_job(self._cluster.steps(pod), (at - CALM_S, at), (resumed - event["total_s"], resumed + AFTER_S / 2))
        self._keep("grow", "ours", pause.pause_s, step_s=pause.step_s, first_step_s=resumed - at, event=event)
        return pause.pause_s

    def _grow_peer(self, name: str) -> float:
        self._cluster.apply("rayjob.json", self._cluster.peer(name, most=2, checkpoint_every=CHECKPOINT_EVERY))
        self._first_step_of_peer(name, 1, START_S)
        pod = self._calm(name)
        at = self._cluster.let_peer_grow(name, 2).started_at
        resumed = self._first_step_of_peer(name, 2, GROW_S)
        time.sleep(AFTER_S)
        pause = pause_of_job(self._cluster.steps(pod), (at - CALM_S, at), (at, resumed + AFTER_S / 2))
        self._keep("grow", "peer", pause.pause_s, step_s=pause.step_s, first_step_s=resumed - at)
        return pause.pause_s

    def _calm(self, job: str) -> str:
        """The name of its one worker pod, after some undisturbed steps."""
        pods = [pod["metadata"]["name"] for pod in self._cluster.pods(job, "worker")]
        if len(pods) != 1:
            raise NotInTime(f"{job} has the worker pods {pods}, one was to be")
        time.sleep(CALM_S)
        return str(pods[0])

    # help

    def _submit(self, name: str, words: Sequence[str], workers: str) -> tuple[float, str]:
        """When the command began, and the run."""
        command = [LAUNCH, "train", "-d", *words, *self._cluster.words, f"workers={workers}", f"name={name}", "-o", "json"]
        done = self._sandbox.run(command, timeout_s=COMMAND_S, more=self._cluster.environment)
        return done.started_at, str(json.loads(done.output)["run_id"])

    def _configuration(self, words: Sequence[str]) -> dict[str, Any]:
        """The job's configuration, which the peer builds its model, data and optimizer from."""
        import yaml

        printed = self._sandbox.run([LAUNCH, "train", *words, "--cfg", "job", "--resolve"], timeout_s=COMMAND_S).output
        document: dict[str, Any] = yaml.safe_load(printed)
        return document

    def _events(self, run: str) -> list[dict[str, Any]]:
        store = self._cluster.open(run)
        texts = [store.get(found.key).decode() for found in store.list("events")]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def _event(self, run: str, kind: str, since: float, patience_s: float) -> dict[str, Any]:
        """The first event of a kind after a moment."""

        def find() -> dict[str, Any] | None:
            events = self._events(run)
            if (ended := newest(events, "ended")) is not None:
                raise NotInTime(f"{run} ended before its event {kind}: {ended}")
            return next((event for event in events if event["kind"] == kind and seconds_of(event["time"]) > since), None)

        return self._wait(f"event {kind} of {run}", find, patience_s)

    def _first_step_of_peer(self, name: str, world_size: int, patience_s: float) -> float:
        """When the peer had done its first step with so many workers."""

        def find() -> float | None:
            with suppress(KeyMissing):
                return float(self._cluster.open(name).get(f"world-{world_size}"))
            return None

        return self._wait(f"a step of {name} with {world_size} workers", find, patience_s)

    def _wait(self, what: str, find: Callable[[], Found | None], patience_s: float) -> Found:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with suppress(StoreUnavailable):
                if (found := find()) is not None:
                    return found
            time.sleep(POLL_S)
        raise NotInTime(f"{what}: not within {patience_s:g} s")

    def _keep(self, case: str, side: str, seconds: float, **more: Any) -> None:
        self.measured.append({"case": case, "side": side, "seconds": seconds, **more})


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
