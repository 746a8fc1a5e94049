"""Which files belong to the code, and where they lie.

In git: tracked files and untracked ones that git does not ignore. Outside git, or in a folder that git ignores: every file that is not
in a cache or a virtual environment.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError

CACHES = frozenset(
    {".git", ".hg", ".svn", ".venv", "__pycache__", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    | {".import_linter_cache", ".ipynb_checkpoints", ".tox", ".nox", "node_modules", ".idea", ".vscode"}
)
"""Folders that are no code, where git does not say so."""

_GIT_PLACES = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX"})
"""Set inside git's hooks; they would point git at another repository than the folder's own."""


@dataclass(frozen=True)
class SourceFile:
    source: Path
    """Absolute; what a link leads to, not the link."""
    size_bytes: int
    executable: bool


@dataclass(frozen=True)
class CodeFiles:
    files: dict[str, SourceFile]
    """By their paths in the archive, `/` between parts."""
    git_commit: str | None
    """None: not in git, or nothing is committed yet."""
    git_dirty: bool
    """Whether anything in the folder differs from the commit."""


def files_of_code(folder: Path, shipped: Path, *, exclude: Sequence[Path] = ()) -> CodeFiles:
    """The files of the code in `folder`, and the models of `shipped` that it lacks, so that models.resnet can be imported beside one's own.

    What lies under the `exclude` folders is left out, and so are links to nothing. Raises ConfigError for links out of the folder, and
    where git does not say which files there are.
    """
    folder = folder.resolve()
    left_out = [path for path in (_absolute(item, folder) for item in exclude) if path.is_relative_to(folder) and path != folder]
    listed, commit, dirty = _git(folder, left_out)
    if listed is None:
        listed = _walk(folder)
    files: dict[str, SourceFile] = {}
    for path in listed:
        _add(files, folder / path, path, folder, left_out)
    if shipped.resolve() != folder and "models.py" not in files:
        models = shipped.resolve() / "models"
        for path in _walk(models):
            if f"models/{path}" not in files:
                _add(files, models / path, f"models/{path}", models, [])
    return CodeFiles(files, commit, dirty)


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


def _add(files: dict[str, SourceFile], source: Path, path: str, root: Path, left_out: Sequence[Path]) -> None:
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
            files[path] = SourceFile(source, source.stat().st_size, bool(mode & stat.S_IXUSR))
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
