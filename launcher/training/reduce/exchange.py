"""How gradients, and with them the step's other sums, are added up over the batch: what both exchanges have in common.

The parameters are cut into buckets, each sent in one collective call while the last backward pass of the step is still computing.
Buckets follow the parameters in reverse, about the order in which backward passes finish them, and are always sent in that order, so
that all ranks agree. The last one also carries the step's sums (losses, metrics, flags, buffers): when it has arrived, so has the step.

gradient_exchange.py is the fast one; in exact_exchange.py the bits of a sum do not depend on the number of ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from launcher.core.errors import UserCodeError
from launcher.training.comm.collective import Collective, Work
from launcher.training.comm.transport import CollectiveBroken

FIRST_BUCKET_BYTES = 1 << 20
"""Small, so that sending begins early."""
BUCKET_BYTES = 25 << 20


class Bucket(ABC):
    """Parameters whose gradients are sent together."""

    def __init__(self, parameters: list[nn.Parameter], first: int) -> None:
        """`first`: how many parameters are in the buckets before."""
        self.parameters = parameters
        self.first = first
        self.work: Work | None = None
        """The collective call that the bucket is in; None while there is none."""

    def wait(self) -> None:
        """Until the call is done. Raises CollectiveBroken."""
        assert self.work is not None, "it was sent"
        self.work.wait()
        self.work = None

    def abandon(self) -> None:
        """Wait for a call whose result nobody wants any more: only then is its memory free for other use.

        Its collective was left, or the call is done.
        """
        if self.work is not None:
            with suppress(CollectiveBroken):
                self.work.wait()
            self.work = None

    @abstractmethod
    def give_back(self, used: list[bool]) -> None:
        """The sums over the batch to the parameters' `.grad`, None for one that is not `used`."""


class Exchange(ABC):
    """The gradients of one generation after the other; buckets stay from one to the next.

    It begins with the parameters that are trained when it is made; `lay_out` says when others are. In each step: `begin_step`, then `arm`
    before a backward pass, then `finish`. As in a plain loop, a parameter that no shard of the batch used has no gradient: a bit of each
    travels with the sums.
    """

    per_shard: ClassVar[bool]
    """Whether it takes the shards one by one, each with its own sums; else a rank's all together, with its last backward pass."""
    _buckets: Sequence[Bucket]

    def __init__(self, parameters: list[nn.Parameter], collective: Collective) -> None:
        """`parameters`: all of the model."""
        self._parameters = parameters
        self._repeated: frozenset[nn.Parameter] = frozenset()
        self.dtype = dtype_of_sums(parameters)
        """Of everything that is summed."""
        self.trained: tuple[bool, ...] = ()
        """Which parameters are laid out."""
        self._laid_out: list[nn.Parameter] = []
        self._collective = collective
        self._sent = 0
        """Buckets sent in this step."""
        self._armed = False
        """Whether the backward pass that sends buckets has begun."""
        self._sums: Tensor | None = None
        """What was armed last."""
        self._unused: list[int] = []
        """Places, counted over all buckets, of the parameters that have no gradient in what was armed last."""
        self._hooks: list[RemovableHandle] = []
        self._length = 0
        """Of the sums for which the buckets were made."""
        self.lay_out(tuple([parameter.requires_grad for parameter in parameters]))

    @property
    def world_size(self) -> int:
        return self._collective.world_size

    @property
    def alone(self) -> bool:
        """Whether there is no other rank: nothing is sent then."""
        return self.world_size == 1

    def use(self, collective: Collective) -> None:
        """Go on in another generation, of any world size, with the same buckets. The one before was left, or has no call under way."""
        self._armed = False
        for bucket in self._buckets:
            bucket.abandon()
        self._collective = collective

    def lay_out(self, trained: tuple[bool, ...], repeated: Collection[nn.Parameter] | None = None) -> None:
        """Exchange the gradients of these parameters from the next step on: a flag for each. The same on every rank.

        repeated: those that get their gradient in several parts in one backward pass, as a weight that two recomputed blocks share: they are
        sent when the pass is over. None: as before.
        """
        several = self._repeated if repeated is None else frozenset(repeated)
        if trained == self.trained and several == self._repeated:
            return
        self._repeated = several
        self._forget_buckets()
        self.trained = trained
        self._laid_out = [parameter for parameter, flag in zip(self._parameters, trained, strict=True) if flag]

    def _forget_buckets(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._buckets = []

    def check(self) -> None:
        """Raises CollectiveBroken once the generation was left: what is computed further is in vain. So does the last backward pass."""
        self._collective.check()

    @abstractmethod
    def begin_step(self) -> None:
        """Drop the gradients of the step before."""

    @abstractmethod
    def arm(self, sums: Tensor, *, last: bool) -> None:
        """Before a backward pass, the rank's last one in the step or not: `sums`, (n,) of `dtype` and as long on every rank, belong to it.

        Without `per_shard` it is called before the last one alone. Raises CollectiveBroken.
        """

    @abstractmethod
    def finish(self) -> Tensor:
        """After the last backward pass: wait for the others; `.grad` holds the gradients of the whole batch then.

        Gives the sums of `sums` over the batch, (n,). Raises CollectiveBroken.
        """

    def _cut(self, sums: int) -> Iterator[tuple[list[nn.Parameter], int, int]]:
        """New buckets for what is laid out: the parameters of each, how many are in the buckets before, and how many further numbers it holds.

        The last one has `sums` of them, and a bit for each parameter. What cannot be sent before the backward pass is over is in the last ones.
        """
        self._forget_buckets()
        self._length = sums
        at_once = [parameter for parameter in self._laid_out if parameter not in self._repeated]
        later = [parameter for parameter in self._laid_out if parameter in self._repeated]
        first = 0
        for members in cut_into_buckets([*later, *at_once]):
            last = first + len(members) == len(self._laid_out)
            yield members, first, sums + len(self._laid_out) if last else 0
            first += len(members)

    def _tail(self) -> Tensor:
        """What goes behind the gradients of the last bucket: the sums, and the bits, all of which are known when it is its turn."""
        assert self._sums is not None, "armed before"
        bits = self._sums.new_ones(len(self._laid_out))
        if self._unused:
            bits[self._unused] = 0.0
        return torch.cat([self._sums, bits])

    def _give_back(self, tail: Tensor) -> Tensor:
        """The gradients to the parameters, as the bits of the summed `tail` say; gives its sums."""
        sums, bits = torch.split(tail, [self._length, len(self._laid_out)])
        used = [bit > 0 for bit in bits.tolist()]
        for bucket in self._buckets:
            bucket.give_back(used[bucket.first : bucket.first + len(bucket.parameters)])
        return sums

    def _listen(self, parameter: nn.Parameter, ready: Callable[[nn.Parameter], None]) -> None:
        """Call `ready` as soon as the gradient of a parameter is complete."""
        if parameter in self._repeated:
            return
        trained = parameter.requires_grad
        parameter.requires_grad_(True)  # torch refuses a hook of a parameter that is frozen at the moment
        self._hooks.append(parameter.register_post_accumulate_grad_hook(ready))  # type: ignore[no-untyped-call] # untyped in torch
        parameter.requires_grad_(trained)

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def too_late(parameter: nn.Parameter) -> UserCodeError:
    """The error for a part of a gradient that comes when the gradient was sent already."""
    return UserCodeError(
        "a parameter got a further gradient in a backward pass after its gradient was complete",
        where="model",
        given=f"a parameter of shape {tuple(parameter.shape)}",
        expected="one gradient for a parameter in a backward pass, or several in the first step already",
        next="use checkpoint(..., use_reentrant=False)",
    )


def dense(gradient: Tensor) -> Tensor:
    """Gradients are summed dense, whatever the number of ranks."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def dtype_of_sums(parameters: list[nn.Parameter]) -> torch.dtype:
    """float64 where a parameter has it, else float32, however small the parameters' own types are."""
    return torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32


def cut_into_buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Which parameters share a bucket, in the order in which buckets are sent; never a function of what was before."""
    buckets: list[list[nn.Parameter]] = [[]]
    size, limit = 0, FIRST_BUCKET_BYTES
    for parameter in reversed(parameters):
        if size >= limit:
            buckets.append([])
            size, limit = 0, BUCKET_BYTES
        buckets[-1].append(parameter)
        size += parameter.numel() * 4
    return buckets
