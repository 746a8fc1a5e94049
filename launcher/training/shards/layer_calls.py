"""Which call of a layer within a forward pass is this one, also where a part of the pass is computed again in the backward pass?

Whoever computes again (torch.utils.checkpoint, and all that do as it does) puts back the state that torch's default generator had, so that
what is drawn at random is drawn again. Each call draws one number from it and remembers that; a call in a backward pass that draws a known
number is that call again. Where the generator is not put back, a layer that was called once can still be told.
"""

from __future__ import annotations

import torch

from launcher.core.errors import UserCodeError


def computing_again() -> bool:
    """Whether autograd is at work on this thread: what a layer computes now, it computed before."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class LayerCalls:
    """Of layers that are numbered from 0 on."""

    def __init__(self, layers: int) -> None:
        self._counts = [0] * layers
        self._marks: list[dict[int, int]] = [{} for _ in range(layers)]

    def begin_forward(self) -> None:
        """Count from 0."""
        self._counts[:] = [0] * len(self._counts)
        for marks in self._marks:
            marks.clear()

    def number(self, layer: int) -> int:
        """Of the call that begins now. Raises UserCodeError for one that is computed again and cannot be told from others."""
        count = self._counts[layer]
        if torch.compiler.is_compiling():  # what is computed again is traced once, with this number in it
            self._counts[layer] = count + 1
            return count
        mark = int(torch.empty((), dtype=torch.int64).random_())
        if computing_again() and count > 0:
            known = self._marks[layer].get(mark)
            if known is not None:
                return known
            if count == 1:
                return 0
            raise UserCodeError(
                "a part of the model is computed again in the backward pass with other random numbers",
                where="model, activation checkpointing",
                given=f"a Dropout layer that is called {count} times in a forward pass, and a generator that was not put back",
                expected="the random numbers of the forward pass",
                next="use checkpoint(..., preserve_rng_state=True)",
            )
        self._counts[layer] = count + 1
        self._marks[layer][mark] = count
        return count
