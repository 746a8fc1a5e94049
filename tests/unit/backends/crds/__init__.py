"""Schemas of RayJob as KubeRay publishes them, trimmed: see README.md."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

VERSIONS = ("1.6.2", "1.7.0")


def place(version: str) -> Path:
    return Path(__file__).with_name(f"rayjob-{version}.json.gz")


def rayjob_schema(version: str) -> Any:
    """The openAPIV3Schema of RayJob, version v1, of this release of KubeRay."""
    schema = json.loads(gzip.decompress(place(version).read_bytes()))
    # Every API server has the schema of an object's own metadata built in.
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return schema
