"""Parameters are changed by the optimizer alone: what forward writes into one would differ from rank to rank."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from launcher.core.errors import UserCodeError


def versions_of(parameters: Sequence[nn.Parameter]) -> list[int]:
    """torch's counts of what was written into each; what is written through `.data` is not counted."""
    return [parameter._version for parameter in parameters]


def check_unwritten(parameters: Sequence[nn.Parameter], versions: list[int]) -> None:
    """Raises UserCodeError where something was written since `versions_of`."""
    if versions_of(parameters) == versions:
        return
    written = [tuple(item.shape) for item, before in zip(parameters, versions, strict=True) if item._version != before]
    raise UserCodeError(
        "a parameter is changed in forward",
        where="model",
        given=f"parameters of shape {', '.join(map(str, written[:3]))}",
        expected="parameters that the optimizer alone changes: other workers would have other ones",
        next="keep what forward changes in a buffer; for nn.Embedding(max_norm=...) normalise what was looked up",
    )
