"""Makes this folder's schemas from KubeRay's definition: python -m tests.unit.backends.crds.trim VERSION ray.io_rayjobs.yaml"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.unit.backends.crds import place


def trim(definition: Any) -> bytes:
    """Of the definition its schema of v1, without descriptions; the metadata's own schema is built into every API server."""
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1")
    text = json.dumps(_without_descriptions(schema), separators=(",", ":"), sort_keys=True)
    return gzip.compress(text.encode(), mtime=0)


def _without_descriptions(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    trimmed: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            trimmed[key] = {name: _without_descriptions(each) for name, each in value.items()}
        elif key != "description":
            trimmed[key] = _without_descriptions(value)
    return trimmed


if __name__ == "__main__":
    version, path = sys.argv[1:]
    place(version).write_bytes(trim(yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader)))
