"""JobSpec: everything that a machine needs to run a job, frozen, versioned, the same JSON on every backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from msgspec import Struct

from launcher.config.parse import dump_config, parse_config
from launcher.config.schema import JobConfig
from launcher.core.errors import ConfigError
from launcher.core.types import JsonObject, RunId
from launcher.record.parsing import parsed

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
    """A job of a run, as spec-N.json in the run's folder has it."""

    run_id: RunId
    name: str
    number: int = 1
    """1 for the submit; `resume` with overrides adds the next."""
    config: JobConfig
    code: CodeRef
    versions: dict[str, str]
    """Of python, launcher, torch and ray, by name, on the machine that submitted or resumed the run with this spec."""
    submitted_at: str
    """UTC, ISO 8601."""
    version: int = VERSION

    def to_json(self) -> JsonObject:
        """What spec-N.json holds."""
        return {**asdict(self), "config": dump_config(self.config)}

    @classmethod
    def from_json(cls, document: object) -> JobSpec:
        """The job that `to_json` gave.

        Raises ConfigError for a job of another version of launcher or with a configuration that does not hold, StoreDamaged for what is
        no job, or holds a key that this version does not know.
        """
        version = document.get("version") if isinstance(document, dict) else None
        if version != VERSION:
            raise ConfigError(
                "the job was written by another version of launcher",
                where="spec",
                given=f"version {version}",
                expected=f"version {VERSION}",
                next="use the launcher that submitted it",
            )
        read = parsed(document, _Document, where="spec")
        return cls(
            run_id=read.run_id,
            name=read.name,
            number=read.number,
            config=parse_config(read.config),
            code=read.code,
            versions=read.versions,
            submitted_at=read.submitted_at,
        )


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    """A JobSpec in JSON, with its configuration still to be parsed. A key that is not known asks for what this version cannot do."""

    run_id: RunId
    name: str
    number: int
    config: dict[str, object]
    code: CodeRef
    versions: dict[str, str]
    submitted_at: str
    version: int
