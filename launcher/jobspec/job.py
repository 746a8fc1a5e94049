"""JobSpec: everything that a machine needs to run a job, frozen, versioned, the same JSON on every backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from launcher.config.parse import dump_config, parse_config
from launcher.config.schema import JobConfig
from launcher.core.errors import ConfigError
from launcher.core.types import JsonObject, RunId

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CodeRef:
    """The user's code: an archive in the run store, where it came from, and what it needs."""

    digest: str
    """SHA-256 over sorted path, mode and content."""
    git_commit: str | None = None
    git_dirty: bool = False
    packages: str | None = None
    """SHA-256 of the archived requirements file; None: the job needs no more than what the cluster has."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    run_id: RunId
    name: str
    number: int = 1
    """1 for the submit; `resume` with overrides adds the next."""
    config: JobConfig
    code: CodeRef
    versions: dict[str, str]
    """Of python, launcher, torch, ray as the machine has them that submitted, or resumed, with this spec."""
    submitted_at: str
    version: int = VERSION

    def to_json(self) -> JsonObject:
        return {**asdict(self), "config": dump_config(self.config)}

    @classmethod
    def from_json(cls, document: Any) -> JobSpec:
        if document.get("version") != VERSION:
            raise ConfigError(
                "the job was written by another version of launcher",
                where="spec",
                given=f"version {document.get('version')}",
                expected=f"version {VERSION}",
                next="use the launcher that submitted it",
            )
        return cls(**{**document, "config": parse_config(document["config"]), "code": CodeRef(**document["code"])})
