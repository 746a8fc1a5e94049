"""What a job on this machine needs, checked before there is one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from launcher.backends.base import Finding
from launcher.backends.local import ray_instance
from launcher.backends.probe_report import versions_words
from launcher.config.schema import JobConfig
from launcher.core.errors import BackendUnavailable, ConfigError
from launcher.jobspec.environment import refuse_kubernetes_secrets, secrets
from launcher.jobspec.versions import installed_versions

NEEDED = ("ray", "torch")
_VERSIONS, _SECRETS, _GPUS, _FOLDER, _RAY = "versions", "secrets", "GPUs", "local Ray's folder", "local Ray"


def examine(config: JobConfig, count_gpus: Callable[[], int]) -> Iterator[Finding]:
    """The findings in order; ends early where the local Ray's folder cannot be used. `count_gpus`: how many GPUs the driver lists."""
    yield judge_versions(installed_versions())
    try:
        refuse_secrets_elsewhere(config, os.environ)
    except ConfigError as error:
        yield Finding.of_error(_SECRETS, error)
    yield _gpus(count_gpus, config)
    try:
        found = _try_folder()
    except (BackendUnavailable, OSError) as error:
        yield _no_folder(error)
        return
    yield found
    yield _running()


def refuse_secrets_elsewhere(config: JobConfig, command: Mapping[str, str]) -> None:
    """Raises ConfigError for a secret of the job that the environment of the command does not hold."""
    refuse_kubernetes_secrets(config)
    secrets(config, command)


def judge_versions(versions: dict[str, str]) -> Finding:
    lacking = [name for name in NEEDED if name not in versions]
    words = versions_words(versions)
    if lacking:
        return Finding.failed(
            _VERSIONS, f"{' and '.join(lacking)} not installed; there are {words}", "pip install launcher, with what it requires"
        )
    return Finding.ok(_VERSIONS, words)


def _gpus(count: Callable[[], int], config: JobConfig) -> Finding:
    try:
        gpus = count()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding.failed(_GPUS, f"the driver does not answer: {error}", "see what nvidia-smi says")
    return judge_gpus(gpus, config)


def judge_gpus(gpus: int, config: JobConfig) -> Finding:
    each = config.gpus_of_worker(gpus)
    wanted = each * config.workers.min
    found = f"the driver lists {gpus}"
    if gpus < wanted:
        asked = f"gpu={config.gpu}" if config.gpu is not None else "resources.device=cuda"
        return Finding.failed(
            _GPUS,
            f"{found}; workers={config.workers.min} with {asked} need {wanted}",
            "set gpu=0 or resources.device=cpu to train on the CPU; where there should be GPUs, see what nvidia-smi says",
        )
    return Finding.ok(_GPUS, found if config.device_of_worker(each) == "cuda" else f"{found}: jobs train on the CPU")


def _try_folder() -> Finding:
    """Write to the local Ray's folder; one that was made for this is removed again. Raises BackendUnavailable or OSError."""
    new = not ray_instance.location().exists()
    path = ray_instance.folder()
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"launcher")
            file.flush()
    finally:
        if new:
            with suppress(OSError):  # not empty: another command uses it by now
                path.rmdir()
    return Finding.ok(_FOLDER, f"{path} can be written")


def _no_folder(error: BackendUnavailable | OSError) -> Finding:
    fix = "set LAUNCHER_RAY_DIR to a folder that you may write to"
    if isinstance(error, OSError):
        return Finding.failed(_FOLDER, f"{ray_instance.location()} cannot be written: {error.strerror}", fix)
    found = Finding.of_error(_FOLDER, error)
    return Finding.failed(_FOLDER, found.found, f"{fix}: {error.expected}" if error.expected else fix)


def _running() -> Finding:
    state = ray_instance.location()
    try:
        running = ray_instance.read(state)
        if running is not None:
            ray_instance.refuse_other_versions(running)
            return Finding.ok(_RAY, f"Ray {running.versions['ray']} is running at {running.address}")
    except BackendUnavailable as error:
        return Finding.of_error(_RAY, error)
    try:
        failure = (state / "error.txt").read_text(errors="replace").strip()
    except FileNotFoundError:
        return Finding.ok(_RAY, "none is running: the first job starts one")
    last = failure.splitlines()[-1] if failure else "it is not known why"
    return Finding.warning(_RAY, f"it did not start the last time: {last}", f"the next job tries again; {state / 'keeper.log'} says more")
