"""Named numbers and strings, so that a rank cannot be passed where a step is meant."""

from __future__ import annotations

from typing import NewType, TypeAlias

RunId = NewType("RunId", str)
WorkerId = NewType("WorkerId", str)
Term = NewType("Term", int)
Generation = NewType("Generation", int)
Rank = NewType("Rank", int)
WorldSize = NewType("WorldSize", int)
Step = NewType("Step", int)
"""Count of optimizer steps done; also names the state after that many steps. The first step has index 0 and leads to Step 1."""
SampleIndex = NewType("SampleIndex", int)
"""Position in the endless stream of samples (docs/architecture.md)."""

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
JsonObject: TypeAlias = dict[str, Json]
