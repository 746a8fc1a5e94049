"""The Ray of this user on this machine: one for all jobs, so that GPUs are counted once.

A keeper process (launcher.backends.local.ray_keeper) starts it, holds it and ends it after ten idle minutes. What others need
to know lies in one folder, LAUNCHER_RAY_DIR or a folder of the user's under the system's temporary one:

    ray.json        address, dashboard, versions and the keeper's process; there only while Ray is ready
    token           what Ray and its dashboard ask for
    error.txt       why the last start failed
    keeper.log      the keeper's own output
    jobs/           which supervisor works on which run (launcher.backends.local.supervisors)
    code/           unpacked archives of user code
    ray/            Ray's temporary folder
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from launcher.backends.local.state_files import read_state, write_state
from launcher.core.errors import BackendUnavailable
from launcher.core.process import ProcessRef
from launcher.jobspec.environment import of_local_ray

IDLE_LIMIT_S = 600.0
LONGEST_FOLDER = 40
"""Ray puts unix sockets about 60 characters below the folder; the system allows 107 in all."""


@dataclass(frozen=True, kw_only=True)
class LocalRay:
    """A Ray that is ready, as ray.json holds it."""

    address: str
    """Of Ray itself, HOST:PORT."""
    dashboard: str
    """The page's address; "" where the dashboard is not up."""
    session: str
    """Ray's folder of this session."""
    versions: dict[str, str]
    keeper: ProcessRef
    gpus: int
    """That Ray counts in all."""


def versions() -> dict[str, str]:
    """Of Ray and Python here: a Ray and whoever connects to it must have the same ones."""
    return {"ray": version("ray"), "python": ".".join(map(str, sys.version_info[:3]))}


def location() -> Path:
    """Where the state folder is, or would be."""
    return Path(os.environ.get("LAUNCHER_RAY_DIR") or Path(tempfile.gettempdir()) / f"launcher-{os.getuid()}").absolute()


def folder() -> Path:
    """The state folder, made when missing, for this user alone. Raises BackendUnavailable when it cannot be trusted."""
    path = location()
    if len(str(path)) > LONGEST_FOLDER:
        raise BackendUnavailable(
            "the path of the local Ray's folder is too long for its sockets",
            where="LAUNCHER_RAY_DIR",
            given=str(path),
            expected=f"at most {LONGEST_FOLDER} characters",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.stat()
    except OSError as error:
        raise BackendUnavailable(
            f"the local Ray's folder cannot be made: {error.strerror}", where="LAUNCHER_RAY_DIR", given=str(path)
        ) from error
    if owner.st_uid != os.getuid() or stat.S_IMODE(owner.st_mode) & 0o022:
        raise BackendUnavailable(
            "the local Ray's folder belongs to, or can be written by, somebody else",
            where="LAUNCHER_RAY_DIR",
            given=str(path),
            expected="a folder of your own with mode 0700",
        )
    return path


def token_file(state: Path) -> Path:
    """The file with the token, made when missing, readable by this user alone."""
    path = state / "token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def environment(state: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process around the local Ray: what it inherits, and how Ray is reached."""
    return {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(state)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "LAUNCHER_RAY_DIR": str(state),
    }


def ready_file(state: Path) -> Path:
    return state / "ray.json"


def read(state: Path) -> LocalRay | None:
    """The Ray that is ready now, or None. Raises BackendUnavailable for a file of another version of launcher."""
    found = read_state(ready_file(state), LocalRay)
    return found if found is not None and found.keeper.alive() else None


def write(state: Path, ray: LocalRay) -> None:
    write_state(ready_file(state), ray)


def ensure(state: Path) -> None:
    """Start a Ray unless one is there or is starting; returns at once. Raises BackendUnavailable when the one there cannot be used."""
    running = read(state)
    if running is not None:
        refuse_other_versions(running)
        return
    if keeper_holds(state):
        return
    (state / "error.txt").unlink(missing_ok=True)
    with (state / "keeper.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "launcher.backends.local.ray_keeper", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Its workers inherit this, also those of jobs of other commands.
            env=environment(state, of_local_ray(os.environ)),
            cwd=state,
        )


def refuse_other_versions(running: LocalRay) -> None:
    """Raises BackendUnavailable where the running Ray has other versions than this process."""
    mine = versions()
    if running.versions != mine:
        raise BackendUnavailable(
            "the Ray on this machine has other versions than this launcher",
            where=str(ready_file(folder())),
            given=", ".join(f"{name} {number}" for name, number in sorted(running.versions.items())),
            expected=", ".join(f"{name} {number}" for name, number in sorted(mine.items())),
            next="end it with `python -m launcher.backends.local.ray_instance stop` when no job needs it, or set LAUNCHER_RAY_DIR to another folder",
        )


@contextmanager
def keeper_lock(state: Path) -> Iterator[bool]:
    """The lock that the one keeper holds for its life; yields whether this process has it now."""
    with (state / "keeper.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def keeper_holds(state: Path) -> bool:
    with keeper_lock(state) as free:
        return not free


def stop(state: Path) -> bool:
    """End the local Ray and everything on it; False when there was none."""
    running = read(state)
    if running is None:
        return False
    return running.keeper.end(grace_s=20.0)


if __name__ == "__main__":
    if sys.argv[1:] != ["stop"]:
        sys.exit("usage: python -m launcher.backends.local.ray_instance stop")
    print("stopped" if stop(folder()) else "no local Ray is running")
