"""The laptop: the shared local Ray, and a supervisor for each run as a process of its own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.backends.base import LAST_WORDS, Dashboard, Finding, Owner, Placement
from launcher.backends.local import checks as local_checks
from launcher.backends.local import ray_instance as local_ray
from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable
from launcher.core.process import ProcessRef
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore


@dataclass(frozen=True)
class LocalJob:
    """This machine's own record of who works on a run."""

    run_id: str
    runs: str
    supervisor: ProcessRef
    path: Path

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    @property
    def controller_file(self) -> Path:
        """Where the supervisor writes the process of the controller that it keeps."""
        return self.path.with_suffix(".controller")

    def processes(self) -> list[ProcessRef]:
        try:
            controller = [ProcessRef.from_json(json.loads(self.controller_file.read_text()))]
        except (FileNotFoundError, json.JSONDecodeError):
            controller = []
        return [self.supervisor, *controller]

    def alive(self) -> bool:
        return any(process.alive() for process in self.processes())


class LocalBackend:
    def place(self, spec: JobSpec) -> Placement:
        config = spec.config
        total = _gpus_here()
        running = local_ray.read(local_ray.location())
        if running is not None:
            local_ray.refuse_other_versions(running)
            total = running.gpus
        wanted = config.gpus_of_worker(total)
        workers = config.workers.max if wanted == 0 else min(config.workers.max, total // wanted)
        where = f"this machine ({os.cpu_count()} cores, {total} GPU{'' if total == 1 else 's'})"
        reason = ""
        if workers < config.workers.min:
            reason = f"{config.workers.min} workers with {wanted} GPU each need {config.workers.min * wanted}; there are {total}"
        device = config.device_of_worker(wanted)
        return Placement(fits=not reason, workers=workers, device=device, gpu_per_worker=wanted, where=where, reason=reason)

    def announce(self, run: RunStore) -> None:
        path = _record_path(local_ray.folder(), run)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(LocalJob(run.run_id, run.store.uri, ProcessRef.of(os.getpid()), path))

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        state = local_ray.folder()
        local_ray.ensure(state)
        self.announce(run)
        path = _record_path(state, run)
        job = LocalJob(run.run_id, run.store.uri, ProcessRef.of(os.getpid()), path)
        job.controller_file.unlink(missing_ok=True)
        arguments = ["--runs", run.store.uri, "--run-id", run.run_id, "--state", str(state), "--controller-file", str(job.controller_file)]
        try:
            with job.log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "launcher.runtime.supervisor", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=local_ray.environment(state),
                    cwd=state,
                )
        except OSError as error:
            raise BackendUnavailable(f"the supervisor cannot be started: {error.strerror}", where=sys.executable) from error
        _write(LocalJob(run.run_id, run.store.uri, ProcessRef.of(process.pid), path))

    def owner(self, run: RunStore) -> Owner:
        job = _read(_record_path(local_ray.location(), run))
        if job is None:
            return Owner.UNKNOWN
        return Owner.ALIVE if job.alive() else Owner.GONE

    def reason_pending(self, run: RunStore) -> str:
        state = local_ray.folder()
        if local_ray.read(state) is None:
            return "the local Ray did not start" if (state / "error.txt").exists() else "the local Ray is starting"
        return "the controller is starting"

    def last_words(self, run: RunStore) -> str:
        try:
            said = _record_path(local_ray.location(), run).with_suffix(".log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return said.strip()[-LAST_WORDS:]

    def remove(self, run: RunStore) -> str:
        job = _read(_record_path(local_ray.folder(), run))
        if job is None:
            return "its processes were started on another machine"
        remaining = [process for process in job.processes() if not process.end(grace_s=10.0)]
        return f"process {remaining[0].pid} could not be ended" if remaining else ""

    def dashboard(self, run: RunStore) -> Dashboard | None:
        state = local_ray.folder()
        running = local_ray.read(state)
        if running is None or not running.dashboard:
            return None
        return Dashboard(url=running.dashboard, token_file=str(local_ray.token_file(state)))

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        return local_checks.examine(config, _gpus_here)


def living_supervisors(state: Path) -> Iterator[LocalJob]:
    for path in (state / "jobs").glob("*.json"):
        job = _read(path)
        if job is not None and job.alive():
            yield job


def _record_path(state: Path, run: RunStore) -> Path:
    digest = hashlib.sha256(f"{run.store.uri}\0{run.run_id}".encode()).hexdigest()[:16]
    return state / "jobs" / f"{digest}.json"


def _read(path: Path) -> LocalJob | None:
    try:
        document: Any = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return LocalJob(document["run_id"], document["runs"], ProcessRef.from_json(document["supervisor"]), path)


def _write(job: LocalJob) -> None:
    partial = job.path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"run_id": job.run_id, "runs": job.runs, "supervisor": job.supervisor.to_json()}))
    partial.replace(job.path)


def _gpus_here() -> int:
    """GPUs of this machine without loading CUDA: what the driver lists."""
    if not shutil.which("nvidia-smi"):
        return 0
    answer = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=20)
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
