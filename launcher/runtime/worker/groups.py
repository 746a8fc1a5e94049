"""The process groups of a worker's generations: formed in the background, entered, cut off, closed. Runs in the worker.

A group is formed on a thread of its own while the main thread trains in the present one. When the next is entered the old one stays open:
other ranks may be inside one of its calls until the new generation has done a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core.types import Generation
from launcher.runtime.protocol.messages import GetKey, SetKey, Value
from launcher.runtime.protocol.participant import Assignment
from launcher.runtime.transport.rendezvous import RendezvousStore
from launcher.training.comm.transport import CollectiveBroken

if TYPE_CHECKING:
    from launcher.training.comm.collective import Collective


@dataclass(eq=False)
class _Group:
    """Of a generation that is not entered yet."""

    collective: Collective
    store: RendezvousStore
    formed: bool = False


class Groups:
    def __init__(
        self,
        make: Callable[[Assignment], Collective],
        say: Callable[[SetKey | GetKey], None],
        *,
        connected: Callable[[Generation, float], None],
        could_not_connect: Callable[[Generation, str], None],
    ) -> None:
        """`make`: a collective that is not connected. `connected`, with the seconds that it took, or `could_not_connect`, with the reason,
        follows each `connect` on a thread of its own, unless the group was discarded.
        """
        self._make, self._say, self._connected, self._could_not_connect = make, say, connected, could_not_connect
        self._lock = threading.Lock()
        """Guards what follows. No callback is called with it."""
        self._waiting: dict[Generation, _Group] = {}
        """Being formed, or formed and not entered."""
        self._entered: Collective | None = None
        self._retired: list[Collective] = []
        """Of earlier generations, not closed yet."""

    # orders, and what they need

    def connect(self, assignment: Assignment) -> None:
        """Form the group in the background."""
        group = _Group(self._make(assignment), RendezvousStore(assignment.generation, self._say))
        with self._lock:
            self._waiting[assignment.generation] = group
        threading.Thread(target=self._form, args=(assignment.generation, group), name="connect", daemon=True).start()

    def discard(self, generation: Generation) -> None:
        """Leave and close a group that was not entered; nothing where it is unknown."""
        with self._lock:
            group = self._waiting.pop(generation, None)
            formed = group is not None and group.formed
        if group is not None:
            group.collective.leave()
            if formed:
                _close_in_background([group.collective])

    def cut(self) -> None:
        """Make the call that the main thread is in, and every later one, fail in the group that was entered last."""
        with self._lock:
            entered = self._entered
        if entered is not None:
            entered.leave()

    def value(self, value: Value) -> None:
        """A key is set that the ranks of a group look for."""
        with self._lock:
            group = self._waiting.get(value.generation)
        if group is not None:
            group.store.answered(value)

    def repeat(self) -> None:
        """Tell a new controller which keys are set and waited for."""
        with self._lock:
            stores = [group.store for group in self._waiting.values()]
        for store in stores:
            store.repeat()

    # the main thread

    def enter(self, generation: Generation) -> Collective:
        """The group of a generation, which was formed."""
        with self._lock:
            group = self._waiting.pop(generation)
            if self._entered is not None:
                self._retired.append(self._entered)
            self._entered = group.collective
        return group.collective

    def close_retired(self) -> None:
        """All ranks are in the present group: the earlier ones are no longer needed."""
        with self._lock:
            retired, self._retired = self._retired, []
        if retired:
            _close_in_background(retired)

    @property
    def waited_s(self) -> float:
        """Seconds that the present group has waited for other ranks."""
        entered = self._entered
        return entered.waited_s if entered is not None else 0.0

    @property
    def waiting(self) -> bool:
        """Whether it does so at this moment."""
        entered = self._entered
        return entered is not None and entered.waiting

    # a thread for each group that is being formed

    def _form(self, generation: Generation, group: _Group) -> None:
        began = time.monotonic()
        try:
            group.collective.connect(group.store)
        except CollectiveBroken as error:
            with self._lock:
                discarded = self._waiting.get(generation) is not group
                if not discarded:
                    del self._waiting[generation]
            if not discarded:
                self._could_not_connect(generation, str(error))
            return
        with self._lock:
            discarded = self._waiting.get(generation) is not group
            group.formed = True
        if discarded:
            group.collective.close()
        else:
            self._connected(generation, round(time.monotonic() - began, 4))


def _close_in_background(collectives: Sequence[Collective]) -> None:
    threading.Thread(target=_close, args=(collectives,), name="close-groups", daemon=True).start()


def _close(collectives: Sequence[Collective]) -> None:
    for collective in collectives:
        collective.close()
