"""The bytes of an archive of code: a zip file that is the same for the same tree, and the digest that names the tree."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from launcher.core.errors import ConfigError, JobFailed


def digest_of(content: Mapping[str, bytes], executable: Mapping[str, bool]) -> str:
    """SHA-256 over sorted path, mode (executable or not) and content."""
    whole = hashlib.sha256()
    for path in sorted(content):
        mode = "x" if executable[path] else "-"
        # A path holds no NUL, and the rest of a record has a fixed length, so that two trees never read the same.
        whole.update(os.fsencode(path) + f"\0{mode}".encode() + hashlib.sha256(content[path]).digest())
    return whole.hexdigest()


def zipped(content: Mapping[str, bytes], executable: Mapping[str, bool]) -> bytes:
    """The zip file; the same tree gives the same bytes. Raises ConfigError for a file name that is not text."""
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


def unzipped(data: bytes) -> tuple[dict[str, bytes], dict[str, bool]]:
    """Content, and whether it is executable, by path. Raises JobFailed for what is no zip file, or has entries outside its folder."""
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
