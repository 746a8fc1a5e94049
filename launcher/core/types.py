"""Named numbers and strings, so that a rank cannot be passed where a step is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType, TypeAlias

RunId = NewType("RunId", str)
WorkerId = NewType("WorkerId", str)
Term = NewType("Term", int)
Generation = NewType("Generation", int)
Rank = NewType("Rank", int)
WorldSize = NewType("WorldSize", int)
Step = NewType("Step", int)
"""Count of optimizer steps done; also names the state after that many steps. The first step has index 0 and leads to Step 1."""

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
else:
    Json = object  # msgspec, which reads annotations to parse, takes no type that contains itself
JsonObject: TypeAlias = dict[str, Json]
