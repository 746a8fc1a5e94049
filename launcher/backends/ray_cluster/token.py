"""The token of a Ray cluster: where it is looked for, and that it is never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError


@dataclass(frozen=True)
class Token:
    value: str
    source: str
    """Where it comes from, in words; errors name this and never the value."""
    path: str = ""
    """The file that holds it; "" where it comes from a variable."""


def read_token(file: str | None) -> Token | None:
    """The token for the cluster; where no file is named, it is looked for where Ray's own clients look.

    Raises ConfigError for a file, or a variable, that holds no token.
    """
    if file is not None:
        return _from_file(Path(file).expanduser(), "backend.token_file")
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(_checked(given, "RAY_AUTH_TOKEN", "that variable"), "RAY_AUTH_TOKEN")
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _from_file(Path(named).expanduser(), "RAY_AUTH_TOKEN_PATH")
    usual = Path.home() / ".ray" / "auth_token"
    return _from_file(usual, "Ray's own token file") if usual.exists() else None


def _from_file(path: Path, where: str) -> Token:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(
            f"the token of the Ray cluster cannot be read: {why}", where=where, given=str(path), expected="a file that holds the token"
        ) from error
    return Token(_checked(text, where, str(path)), str(path), str(path))


def _checked(text: str, where: str, given: str) -> str:
    """A header takes printable ASCII alone. The error does not show the text, because a part of it may be the secret."""
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError("there is no token of a Ray cluster in it", where=where, given=given, expected="one line of printable ASCII")
    return text
