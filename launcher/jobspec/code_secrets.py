"""Files of the code that look like secrets. The code is stored with the run, so they are refused unless a person allows them by path."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from launcher.core.errors import ConfigError
from launcher.jobspec.code_files import SourceFile

SECRETS = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *(".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd", ".s3cfg", ".boto", "kubeconfig", "kubeconfig.*", "*.kubeconfig"),
    *("credentials*", "service-account*.json", "service_account*.json"),
)
"""Patterns of file names, in lower case."""
SECRET_FOLDERS = frozenset({".aws", ".ssh", ".kube", ".gnupg", ".azure", ".gcloud"})
"""Folders in which every file counts as a secret."""
NO_SECRETS = ("*.pub", ".env.example", ".env.sample", ".env.template")
"""Patterns of file names that match SECRETS and are none."""


def refuse_secrets(files: Mapping[str, SourceFile], allow: Sequence[str]) -> None:
    """Raises ConfigError for files that look like secrets by their path, or by the name of what their link leads to.

    `allow`: paths, or patterns of paths, that are not refused.
    """
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


def _enumerated(paths: Iterable[str], shown: int = 8) -> str:
    ordered = sorted(paths)
    more = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {more} more" if more > 0 else "")
