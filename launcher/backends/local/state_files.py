"""JSON files in the local Ray's folder: several processes read and write them at the same time.

A file is replaced in one step, so that a reader gets the old content or the new one, never a half.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher.core.errors import BackendUnavailable

T = TypeVar("T")


def read_state(path: Path, kind: type[T]) -> T | None:
    """None where there is no file, or one that is no JSON (a machine that stopped may have left half of it).

    Raises BackendUnavailable for JSON of another form: another version of launcher wrote it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.ValidationError as error:
        raise BackendUnavailable(
            "another version of launcher has written this file",
            where=str(path),
            given=str(error),
            next="use that version, or set LAUNCHER_RAY_DIR to another folder",
        ) from error
    except msgspec.DecodeError:
        return None


def write_state(path: Path, value: object) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(value))
    partial.replace(path)
