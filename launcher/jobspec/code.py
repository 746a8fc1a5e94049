"""The user's code as one archive: what a job runs from, on every backend, instead of the live tree.

In git: tracked files and untracked ones that git does not ignore, of the folder alone where it is part of a repository.
Outside git, or in a folder that git ignores: the folder without caches and virtual environments. The shipped models that
the folder lacks are added, so that models.resnet can be imported beside the user's own models.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.core.errors import ConfigError, JobFailed

LIMIT_BYTES = 100 * 1024 * 1024
CACHES = frozenset(
    {".git", ".hg", ".svn", ".venv", "__pycache__", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    | {".import_linter_cache", ".ipynb_checkpoints", ".tox", ".nox", "node_modules", ".idea", ".vscode"}
)
"""Folders that are no code, where git does not say so."""

SECRETS = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *(".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd", ".s3cfg", ".boto", "kubeconfig", "kubeconfig.*", "*.kubeconfig"),
    *("credentials*", "service-account*.json", "service_account*.json"),
)
SECRET_FOLDERS = frozenset({".aws", ".ssh", ".kube", ".gnupg", ".azure", ".gcloud"})
NO_SECRETS = ("*.pub", ".env.example", ".env.sample", ".env.template")

_GIT_PLACES = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX"})
"""Set inside git's hooks; they would point git at another repository than the folder's own."""


@dataclass(frozen=True)
class CodeArchive:
    digest: str
    """SHA-256 over sorted path, mode (executable or not) and content."""
    data: bytes
    """The zip file; the same tree gives the same bytes."""
    git_commit: str | None
    git_dirty: bool
    files: tuple[str, ...]
    """Paths in the archive, sorted, `/` between parts."""


@dataclass(frozen=True)
class _File:
    source: Path
    size_bytes: int
    executable: bool


def code_key(digest: str) -> str:
    """The key of an archive, relative to the run."""
    return f"code/{digest}.zip"


def archive(
    folder: Path, shipped: Path, *, allow: Sequence[str] = (), exclude: Sequence[Path] = (), limit_bytes: int = LIMIT_BYTES
) -> CodeArchive:
    """Archive the code in `folder`, with the models of `shipped` that it lacks.

    `allow` are paths (or patterns of them) of files that look like secrets and may travel all the same; what lies under the
    `exclude` folders stays behind, and so do links to nothing. Links inside the folder become copies. Raises ConfigError for
    other files that look like secrets, for links out of the folder, and above `limit_bytes` of content.
    """
    folder = folder.resolve()
    left_out = [path for path in (_absolute(item, folder) for item in exclude) if path.is_relative_to(folder) and path != folder]
    listed, commit, dirty = _git(folder, left_out)
    if listed is None:
        listed = _walk(folder)
    files: dict[str, _File] = {}
    for path in listed:
        _add(files, folder / path, path, folder, left_out)
    if shipped.resolve() != folder and "models.py" not in files:
        models = shipped.resolve() / "models"
        for path in _walk(models):
            if f"models/{path}" not in files:
                _add(files, models / path, f"models/{path}", models, [])
    _refuse_secrets(files, allow)
    _refuse_size(files, limit_bytes)
    content = {path: _read(file) for path, file in sorted(files.items())}
    executable = {path: files[path].executable for path in content}
    return CodeArchive(_digest(content, executable), _zip(content, executable), commit, dirty, tuple(content))


def unpack(data: bytes, digest: str, into: Path) -> Path:
    """Unpack an archive to the folder `into`/DIGEST and return it; one that is there already is returned as it is.

    Several processes may do it at once. The folder appears whole or not at all. Raises JobFailed when the archive is not the
    one of the digest, or would write outside the folder.
    """
    target = into / digest
    if target.is_dir():
        return target
    content, executable = _unzip(data)
    found = _digest(content, executable)
    if found != digest:
        raise JobFailed(
            "the archived code is damaged",
            where=code_key(digest),
            given=f"SHA-256 {found}",
            expected=f"SHA-256 {digest}",
            next="submit again",
        )
    into.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=into))
    try:
        temporary.chmod(0o755)
        for path, item in content.items():
            place = temporary / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(item)
            place.chmod(0o755 if executable[path] else 0o644)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _absolute(path: Path, folder: Path) -> Path:
    return (folder / path.expanduser()).resolve()


def _git(folder: Path, left_out: Sequence[Path]) -> tuple[list[str] | None, str | None, bool]:
    """Files of the folder as git knows them (None: not in git), the commit and whether anything differs from it."""
    but = [f":(exclude,literal){path.relative_to(folder)}" for path in left_out]
    listing = _run_git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listing is None:
        return None, None, False
    changes = (_run_git(folder, "status", "--porcelain=v2", "--branch", "-z", "--", ".", *but) or "").split("\0")
    oids = [line.removeprefix("# branch.oid ") for line in changes if line.startswith("# branch.oid ")]
    commit = oids[0] if oids and oids[0] != "(initial)" else None
    paths = sorted({path for path in listing.split("\0") if path})
    if not paths and _run_git(folder, "check-ignore", ".") is not None:
        return None, None, False
    return paths, commit, any(line and not line.startswith("# ") for line in changes)


def _run_git(folder: Path, *arguments: str) -> str | None:
    """git's answer; None when the folder is not in a repository or git says no."""
    environment = {key: value for key, value in os.environ.items() if key not in _GIT_PLACES}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", "-C", os.fspath(folder), *arguments], capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        return None
    if done.returncode == 0:
        return os.fsdecode(done.stdout)
    complaint = os.fsdecode(done.stderr).strip()
    if not complaint or "not a git repository" in complaint:
        return None
    raise ConfigError(
        "git does not say which files belong to the code",
        where=str(folder),
        given=complaint.partition("\n")[0],
        next=f"make `git -C {folder} {arguments[0]}` work, then try again",
    )


def _walk(folder: Path) -> list[str]:
    """Every file and link under a folder that is not a cache, sorted, relative."""
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in links and not _is_cache(here / name))
        found += [(here / name).relative_to(folder).as_posix() for name in [*names, *links] if not name.endswith((".pyc", ".DS_Store"))]
    return sorted(found)


def _is_cache(folder: Path) -> bool:
    return folder.name in CACHES or folder.name.endswith(".egg-info") or (folder / "pyvenv.cfg").exists()


def _add(files: dict[str, _File], source: Path, path: str, root: Path, left_out: Sequence[Path]) -> None:
    """Enter a listed path: a file, a link, or a folder (a repository of its own, or what a link leads to)."""
    if any(source.is_relative_to(item) for item in left_out):
        return
    try:
        mode = source.lstat().st_mode
        if stat.S_ISLNK(mode) or source.parent.resolve() != source.parent:
            source = _inside(source, path, root)
            mode = source.lstat().st_mode
        if stat.S_ISDIR(mode):
            for name in _walk(source):
                _add(files, source / name, f"{path.rstrip('/')}/{name}", root, left_out)
        elif stat.S_ISREG(mode):
            files[path] = _File(source, source.stat().st_size, bool(mode & stat.S_IXUSR))
    except FileNotFoundError:
        return  # deleted but not yet from git's index, or a link to nothing


def _inside(link: Path, path: str, root: Path) -> Path:
    try:
        target = link.resolve()
    except RuntimeError:  # a link to itself
        target = Path(os.path.sep)
    if not target.is_relative_to(root) or link.is_relative_to(target):
        raise ConfigError(
            "a link in the code leads out of its folder",
            where=str(link),
            given=f"{path} -> {os.readlink(link) if link.is_symlink() else target}",
            expected=f"a file or folder inside {root}, not around the link",
            next="copy what it leads to, remove it, or let git ignore it",
        )
    return target


def _refuse_secrets(files: Mapping[str, _File], allow: Sequence[str]) -> None:
    allowed = [item.removeprefix("./") for item in allow]
    suspect = [path for path, file in files.items() if _looks_secret(path) or _looks_secret(file.source.name)]
    found = [path for path in suspect if not any(fnmatch.fnmatchcase(path, item) for item in allowed)]
    if found:
        raise ConfigError(
            "files that look like secrets would travel with the code",
            where="code.allow",
            given=_enumerated(found),
            expected="no such files, or their paths in code.allow",
            next=f"let git ignore them, or pass code.allow=[{','.join(sorted(found)[:3])}]",
        )


def _looks_secret(path: str) -> bool:
    parts = PurePosixPath(path.lower()).parts
    name = parts[-1]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in NO_SECRETS):
        return False
    return not SECRET_FOLDERS.isdisjoint(parts[:-1]) or any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRETS)


def _refuse_size(files: Mapping[str, _File], limit_bytes: int) -> None:
    total = sum(file.size_bytes for file in files.values())
    if total > limit_bytes:
        largest = sorted(files, key=lambda path: (-files[path].size_bytes, path))[:5]
        raise ConfigError(
            "the code is too large to travel with the job",
            where="the folder that the job is submitted from",
            given=f"{_megabytes(total)}; the largest: " + ", ".join(f"{path} ({_megabytes(files[path].size_bytes)})" for path in largest),
            expected=f"at most {_megabytes(limit_bytes)}",
            next="let git ignore what is no code, or move it elsewhere",
        )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _enumerated(paths: Iterable[str], shown: int = 8) -> str:
    ordered = sorted(paths)
    more = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {more} more" if more > 0 else "")


def _read(file: _File) -> bytes:
    try:
        return file.source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"a file of the code cannot be read: {(error.strerror or str(error)).lower()}",
            where=str(file.source),
            next="make it readable, or let git ignore it",
        ) from error


def _digest(content: Mapping[str, bytes], executable: Mapping[str, bool]) -> str:
    whole = hashlib.sha256()
    for path in sorted(content):
        mode = "x" if executable[path] else "-"
        # A path holds no NUL, and the rest of a record has a fixed length, so that two trees never read the same.
        whole.update(os.fsencode(path) + f"\0{mode}".encode() + hashlib.sha256(content[path]).digest())
    return whole.hexdigest()


def _zip(content: Mapping[str, bytes], executable: Mapping[str, bool]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for path in sorted(content):
            if path != path.encode(errors="replace").decode():
                raise ConfigError("a file name in the code is not text", where=repr(path), next="rename the file")
            entry = zipfile.ZipInfo(path)  # dated 1980: the time is not part of the tree
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | (0o755 if executable[path] else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, content[path], compresslevel=1)
    return buffer.getvalue()


def _unzip(data: bytes) -> tuple[dict[str, bytes], dict[str, bool]]:
    content: dict[str, bytes] = {}
    executable: dict[str, bool] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            for entry in _entries(source):
                content[entry.filename] = source.read(entry)
                executable[entry.filename] = bool(entry.external_attr >> 16 & stat.S_IXUSR)
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError, RuntimeError) as error:
        raise JobFailed("the archived code is damaged", given=str(error), expected="a zip file of code", next="submit again") from error
    return content, executable


def _entries(source: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    seen: set[str] = set()
    for entry in source.infolist():
        path = PurePosixPath(entry.filename)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in entry.filename and path.as_posix() == entry.filename
        if not inside or entry.filename in seen or stat.S_IFMT(entry.external_attr >> 16) != stat.S_IFREG:
            raise ValueError(f"the entry {entry.filename!r} is not a file inside the folder")
        seen.add(entry.filename)
        yield entry
