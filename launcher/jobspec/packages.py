"""A user's extra packages: the requirements file that `backend.requirements` names, archived beside the code.

Each machine of the job installs from the archived file, so what it holds is stored and read by whoever reads the run:
nothing secret may be in it, and nothing that only the submitting machine has.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError, JobFailed

KEY = "backend.requirements"
LIMIT_BYTES = 1_000_000
_USER = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<user>[^/\s@]*)@", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
"""A variable in the file, which pip replaces on the machine that installs."""
_ELSEWHERE = re.compile(r"(-r|--requirement|-c|--constraint|-e|--editable|-f|--find-links)[\s=]*(?P<path>\S+)|(?P<local>\.{1,2}/\S*)")
"""A line that leads to another file or folder: an option of pip with a path, or a relative path."""


@dataclass(frozen=True)
class Requirements:
    digest: str
    """SHA-256 of the content."""
    data: bytes


def requirements_key(digest: str) -> str:
    """The key of an archived file, relative to the run."""
    return f"packages/{digest}.txt"


def read_requirements(name: str, folder: Path) -> Requirements:
    """The file `name`, of `folder` unless it is absolute.

    Raises ConfigError for one that is no text in UTF-8, names no package, is larger than LIMIT_BYTES, or holds what must not be stored or
    only the submitting machine has.
    """
    path = folder / Path(name).expanduser()
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise _refused("the requirements file is too large", path, f"{path.stat().st_size} bytes", f"at most {LIMIT_BYTES} bytes")
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise ConfigError(
            f"the requirements file cannot be read: {(error.strerror or str(error)).lower()}",
            where=KEY,
            given=f"{name} ({path})",
            expected="a file in pip's requirements format",
            next=f"name one that is there, relative to {folder}, or leave {KEY} away",
        ) from error
    except UnicodeDecodeError as error:
        raise _refused("the requirements file is not text", path, f"byte {error.start} is not UTF-8", "text in UTF-8") from error
    lines = text.splitlines()
    if all(not line.strip() or line.lstrip().startswith("#") for line in lines):
        raise _refused("the requirements file names no package", path, "an empty file", f"one requirement a line, or no {KEY}")
    for number, line in enumerate(lines, start=1):
        _refuse_secret(path, number, line)
        _refuse_elsewhere(path, number, line.strip())
    return Requirements(hashlib.sha256(data).hexdigest(), data)


def verified(data: bytes, digest: str) -> bytes:
    """The data itself. Raises JobFailed when it is not what was archived under the digest."""
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise JobFailed(
            "the archived requirements are damaged",
            where=requirements_key(digest),
            given=f"SHA-256 {found}",
            expected=f"SHA-256 {digest}",
            next="submit again",
        )
    return data


def _refuse_secret(path: Path, number: int, line: str) -> None:
    """Raises ConfigError for a credential in a line. Comments are looked at too: they are stored with the rest."""
    for match in _USER.finditer(line):
        user, colon, password = match["user"].partition(":")
        # Over SSH the user is git and the key stays where it is; over HTTP a user without a password is a token.
        secret = password if colon else user if "http" in match["scheme"].lower() else ""
        if _VARIABLE.sub("", secret):
            raise _refused(
                "the requirements file has a credential in it, which would be stored with the run",
                path,
                f"line {number}: {match['scheme']}://***@...",
                "addresses without user and password",
                "let the image or the worker's environment (PIP_INDEX_URL, or ${NAME} in the file) say how to log in",
            )


def _refuse_elsewhere(path: Path, number: int, line: str) -> None:
    """Raises ConfigError for a line that names a file of the submitting machine, which the job's machines do not have."""
    match = _ELSEWHERE.match(line)
    if match is None:
        return
    target = match["path"] or ""
    if "://" in target or target.startswith("/"):  # an absolute path is one in the image
        return
    raise _refused(
        "the requirements file rests on another file, which does not travel with the job",
        path,
        f"line {number}: {line}",
        "names of packages, or addresses that the cluster reaches",
        "write what it refers to into the file itself; your own modules travel with the code",
    )


def _refused(what: str, path: Path, given: str, expected: str, next: str = "") -> ConfigError:
    return ConfigError(what, where=f"{path} ({KEY})", given=given, expected=expected, next=next)
