"""The environment variables of a job, as its record has them: each has its value there, or only says where its secret is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class SecretReference:
    """Where a value is that no record may have."""

    secret: str
    """Name of a variable in the controller's environment, or SECRET/KEY: a key of a Secret of Kubernetes."""


Variables: TypeAlias = Mapping[str, str | SecretReference]
"""By name."""
