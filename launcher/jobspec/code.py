"""The user's code as one archive: what a job runs from, on every backend, instead of the folder as it is at the time.

code_files.py says which files those are, code_secrets.py which of them are refused, code_zip.py how they become bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError, JobFailed
from launcher.jobspec.code_files import SourceFile, files_of_code
from launcher.jobspec.code_secrets import refuse_secrets
from launcher.jobspec.code_variables import variables_read
from launcher.jobspec.code_zip import digest_of, unzipped, zipped

LIMIT_BYTES = 100 * 1024 * 1024


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
    variables: frozenset[str] = frozenset()
    """Names of the environment variables that its Python reads."""

    def read(self, path: str) -> bytes:
        """The content of a file. Raises JobFailed for an archive that is damaged."""
        content, _ = unzipped(self.data)
        return content[path]


def code_key(digest: str) -> str:
    """The key of an archive, relative to the run."""
    return f"code/{digest}.zip"


def archive(
    folder: Path, shipped: Path, *, allow: Sequence[str] = (), exclude: Sequence[Path] = (), limit_bytes: int = LIMIT_BYTES
) -> CodeArchive:
    """Archive the code in `folder`, with the models of `shipped` that it lacks.

    `allow`: paths, or patterns of paths, of files that look like secrets and are archived all the same. What lies under the `exclude`
    folders is left out, and so are links to nothing. Links inside the folder become copies. Raises ConfigError for other files that look
    like secrets, for links out of the folder, and above `limit_bytes` of content.
    """
    code = files_of_code(folder, shipped, exclude=exclude)
    refuse_secrets(code.files, allow)
    _refuse_size(code.files, limit_bytes)
    content = {path: _read(file) for path, file in sorted(code.files.items())}
    executable = {path: code.files[path].executable for path in content}
    return CodeArchive(
        digest_of(content, executable),
        zipped(content, executable),
        code.git_commit,
        code.git_dirty,
        tuple(content),
        variables_read(content),
    )


def unpack(data: bytes, digest: str, into: Path) -> Path:
    """Unpack an archive to the folder `into`/DIGEST and return it; one that is there already is returned as it is.

    Several processes may do it at once. The folder appears whole or not at all. Raises JobFailed when the archive is not the
    one of the digest, or would write outside the folder.
    """
    target = into / digest
    if target.is_dir():
        return target
    content, executable = unzipped(data)
    found = digest_of(content, executable)
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


def _refuse_size(files: Mapping[str, SourceFile], limit_bytes: int) -> None:
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


def _read(file: SourceFile) -> bytes:
    try:
        return file.source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"a file of the code cannot be read: {(error.strerror or str(error)).lower()}",
            where=str(file.source),
            next="make it readable, or let git ignore it",
        ) from error
