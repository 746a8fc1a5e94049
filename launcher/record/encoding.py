"""How a document of the run store is written: one canonical form, so that equal documents are equal bytes. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from launcher.core.types import Json

_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)


def encode(document: Mapping[str, Json]) -> bytes:
    """JSON in UTF-8, with sorted keys and no spaces. Raises ValueError for a number that is not finite."""
    return _ENCODER.encode(document).encode()
