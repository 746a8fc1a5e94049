"""The laptop: the shared local Ray, and a supervisor for each run as a process of its own on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from launcher.backends.base import LAST_WORDS, Dashboard, Finding, Owner, Placement
from launcher.backends.local import checks, ray_instance
from launcher.backends.local.supervisors import LocalJob, files_of
from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable
from launcher.core.process import ProcessRef
from launcher.jobspec.job import JobSpec
from launcher.record.run_store import RunStore

NVIDIA_SMI_TIMEOUT_S = 20


class LocalBackend:
    def place(self, spec: JobSpec) -> Placement:
        config = spec.config
        checks.refuse_secrets_elsewhere(config, os.environ)
        total = _gpus_here()
        running = ray_instance.read(ray_instance.location())
        if running is not None:
            ray_instance.refuse_other_versions(running)
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
        files = files_of(ray_instance.folder(), run)
        files.record.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(LocalJob(run.run_id, run.store.uri, ProcessRef.of(os.getpid())))

    def launch(self, spec: JobSpec, run: RunStore) -> None:
        state = ray_instance.folder()
        ray_instance.ensure(state)
        self.announce(run)
        files = files_of(state, run)
        files.controller.unlink(missing_ok=True)
        arguments = ["--runs", run.store.uri, "--run-id", run.run_id, "--state", str(state), "--controller-file", str(files.controller)]
        try:
            with files.log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "launcher.runtime.supervisor", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=ray_instance.environment(state, os.environ),
                    cwd=state,
                )
        except OSError as error:
            raise BackendUnavailable(f"the supervisor cannot be started: {error.strerror}", where=sys.executable) from error
        files.write(LocalJob(run.run_id, run.store.uri, ProcessRef.of(process.pid)))

    def owner(self, run: RunStore) -> Owner:
        processes = files_of(ray_instance.location(), run).processes()
        if not processes:
            return Owner.UNKNOWN
        return Owner.ALIVE if any(process.alive() for process in processes) else Owner.GONE

    def reason_pending(self, run: RunStore) -> str:
        state = ray_instance.folder()
        if ray_instance.read(state) is None:
            return "the local Ray did not start" if (state / "error.txt").exists() else "the local Ray is starting"
        return "the controller is starting"

    def last_words(self, run: RunStore) -> str:
        try:
            said = files_of(ray_instance.location(), run).log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return said.strip()[-LAST_WORDS:]

    def remove(self, run: RunStore) -> str:
        processes = files_of(ray_instance.folder(), run).processes()
        if not processes:
            return "its processes were started on another machine"
        remaining = [process for process in processes if not process.end(grace_s=10.0)]
        return f"process {remaining[0].pid} could not be ended" if remaining else ""

    def dashboard(self, run: RunStore) -> Dashboard | None:
        state = ray_instance.folder()
        running = ray_instance.read(state)
        if running is None or not running.dashboard:
            return None
        return Dashboard(url=running.dashboard, token_file=str(ray_instance.token_file(state)))

    def examine(self, config: JobConfig) -> Iterator[Finding]:
        return checks.examine(config, _gpus_here)


def _gpus_here() -> int:
    """GPUs of this machine without loading CUDA: what the driver lists."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_TIMEOUT_S)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
