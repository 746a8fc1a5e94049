"""A user's extra packages, installed once from the archived file, beside what the image has. Runs in the worker, before the user's code.

What the image has counts as installed and stays as it is: pip is held to those versions, so that nothing replaces torch or
Ray beneath a job, and the new packages come last on the path.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

from launcher.core.errors import UserCodeError
from launcher.jobspec.packages import KEY, verified

LIMIT_S = 1500.0
"""pip gives up long before when an index does not answer; this is for what hangs without a network."""
LAST_LINES = 12
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def provide(data: bytes, digest: str, into: Path, *, limit_s: float = LIMIT_S) -> Path:
    """Make what the archived requirements name importable in this process, and return the folder `into`/DIGEST that has it.

    Several processes may do it at once: one installs, the others wait for it. The folder appears whole or not at all.
    Raises JobFailed for a file that is not the one of the digest, UserCodeError where pip cannot install it.
    """
    requirements = verified(data, digest)
    target = into / digest
    if not target.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        with _alone(into / f".{digest}.lock"):
            if not target.is_dir():
                _install(requirements, target, limit_s)
    for folder in packages_folders(target):
        # Last on the path, unlike the user's code: what the image has is what Ray and torch were tested with.
        site.addsitedir(str(folder))
    importlib.invalidate_caches()
    return target


def packages_folders(prefix: Path) -> list[Path]:
    """Where pip puts packages under a prefix: it differs between Python's own scheme and those of the distributions."""
    patterns = ("lib*/python3*/site-packages", "local/lib/python3*/dist-packages", "lib/python3/dist-packages")
    return sorted(folder for pattern in patterns for folder in prefix.glob(pattern) if folder.is_dir())


def installed_constraints() -> str:
    """Every installed package at its version, as pip's constraints."""
    found: dict[str, str] = {}
    for each in distributions():
        name, number = each.metadata["Name"], each.version
        # The first on the path is the one that is imported. A version that is no version would make pip refuse the whole file.
        if name and number and _PLAIN.fullmatch(name) and _PLAIN.fullmatch(number):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), number)
    return "".join(f"{name}=={number}\n" for name, number in sorted(found.items()))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """The system lets go of the lock of a process that dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(requirements: bytes, target: Path, limit_s: float) -> None:
    if importlib.util.find_spec("pip") is None:
        raise _cannot("there is no pip in the image, which has to install them", f"no module pip for {sys.executable}")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:12]}-", dir=target.parent))
    try:
        wanted, held, prefix = temporary / "requirements.txt", temporary / "constraints.txt", temporary / "prefix"
        wanted.write_bytes(requirements)
        held.write_text(installed_constraints())
        prefix.mkdir(mode=0o755)
        code, words = _run_pip(["--prefix", str(prefix), "-r", str(wanted), "-c", str(held)], limit_s)
        if code:
            raise _cannot("pip could not install them", f"exit code {code}\n" + "\n".join(words))
        prefix.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_pip(arguments: list[str], limit_s: float) -> tuple[int, list[str]]:
    """Its exit code and its last words; all of them go to this process's output as well."""
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
    # No cache: there may be no home to have it in. Compiled files would name the folder that is renamed afterwards.
    command += ["--no-cache-dir", "--no-compile", "--progress-bar", "off", *arguments]
    words: deque[str] = deque(maxlen=LAST_LINES)
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_TARGET", "PIP_USER", "PIP_PREFIX")}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        assert process.stdout is not None
        watch = threading.Timer(limit_s, process.kill)
        watch.daemon = True
        watch.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            words.append(line.rstrip())
        code = process.wait()
        overdue = not watch.is_alive()
        watch.cancel()
    if overdue and code:
        words.append(f"it was ended after {limit_s:g} s")
    return code, list(words)


def _cannot(what: str, given: str) -> UserCodeError:
    return UserCodeError(
        f"the job's extra packages are missing: {what}",
        where=f"{KEY}, on the worker's machine",
        given=given,
        expected="packages that pip finds from the cluster and that leave what the image has as it is",
        next=f"correct the file that {KEY} names and submit again, or put the packages into the image and leave {KEY} away",
    )
