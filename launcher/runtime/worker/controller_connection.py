"""A worker's connection to its controller, whichever it is, and the end of a worker that nobody leads. Runs in the worker.

Messages come and go on the connection's two threads, a controller attaches on one of Ray's, and one thread watches: without a controller
the worker goes on to the next checkpoint and waits there for another one; when nothing has moved for ORPHAN_LIMIT_S, or the controller
that it lost says that it was evicted, it ends itself. What the next controller has to hear is in outbox.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from launcher.core import log
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.runtime.protocol.messages import ToController, ToWorker
from launcher.runtime.transport.client import MessageClient, was_evicted
from launcher.runtime.worker.outbox import Outbox

ORPHAN_LIMIT_S = 60.0
LOOK_S = 1.0
SPARE_S = 5.0
"""Whoever waits for a controller waits so much longer than an orphan lives."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Contact:
    """Where a controller listens, and the secret of its term."""

    address: tuple[str, int]
    secret: bytes


class Orphanhood:
    """Since when a worker has had no controller and has done nothing; times are monotonic seconds, handed in. Pure."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._progress = -1

    def lasts_s(self, now: float, *, connected: bool, progress: int) -> float:
        """`progress`: a number that grows with the work done."""
        if connected or progress != self._progress:
            self._since, self._progress = now, progress
        return now - self._since


class ControllerConnection:
    def __init__(
        self,
        worker: WorkerId,
        protocol: AbstractContextManager[object],
        *,
        received: Callable[[ToWorker], None],
        beat: Callable[[], ToController],
        progress: Callable[[], int],
        end: Callable[[str], None],
    ) -> None:
        """`protocol`: a reentrant lock, held while a message is taken, with `received`, and while the controller changes: so nothing of an
        earlier controller is obeyed once a new one has its answer. `progress` grows with the work done; `end` ends the process, and is told why.
        """
        self._worker, self._protocol = worker, protocol
        self._received, self._beat, self._progress, self._end = received, beat, progress, end
        self._lock = threading.Lock()
        """Guards what follows; may be taken while `protocol` is held, not the other way round."""
        self._outbox = Outbox()
        self._client: MessageClient | None = None
        self._contact: Contact | None = None
        self._attempts = 0
        """How often somebody has tried to attach."""
        self._attachment = 0
        """The attempt whose client is in use."""
        self._term = self._born = Term(0)
        self._connected = threading.Event()

    @property
    def term(self) -> Term:
        """Of the controller that this worker reports to; 0: none yet."""
        return self._term

    @property
    def born(self) -> Term:
        """Of the first controller."""
        return self._born

    @property
    def undecided(self) -> tuple[tuple[Step, Generation], ...]:
        """Checkpoints of which a part is stored, and of which no controller has said what became of them."""
        with self._lock:
            return self._outbox.undecided

    def watch(self) -> None:
        """Begin to end this process where nobody leads it."""
        threading.Thread(target=self._watch, name="orphan", daemon=True).start()

    def attach(self, term: Term, contact: Contact, answer: Callable[[], Answer]) -> Answer | None:
        """Report to the controller of this term from now on; None: the present one's is as high, or higher.

        What `answer` gives is true before any message of this controller is taken; it is called with `protocol` held.
        Raises OSError or EOFError where the controller cannot be reached.
        """
        with self._lock:
            if term <= self._term:
                return None
            self._attempts += 1
            attachment = self._attempts
        # Without a lock: connecting may take long, and what is said meanwhile goes to the present controller.
        client = MessageClient(
            contact.address,
            contact.secret,
            self._worker,
            received=lambda message: self._take(attachment, message),
            beat=self._beat,
            lost=lambda: self._lost(attachment),
        )
        with self._protocol:
            with self._lock:
                if term <= self._term:
                    client.close()
                    return None
                old, self._client = self._client, client
                self._term, self._born = term, self._born or term
                self._attachment, self._contact = attachment, contact
                self._connected.set()
                for message in self._outbox.messages(time.monotonic()):
                    client.send(message)
            log.bind(term=term)
            if old is not None:
                old.close()
            return answer()

    def term_began(self, term: Term) -> None:
        """The controller goes on under a higher term."""
        with self._lock:
            self._term = max(self._term, term)
        log.bind(term=self._term)

    def say(self, message: ToController) -> None:
        """To the controller, if there is one; some messages also to each that comes later (outbox.py)."""
        with self._lock:
            self._outbox.said(message, time.monotonic())
            if self._client is not None:
                self._client.send(message)

    def forget_save(self, step: Step, generation: Generation) -> None:
        """A checkpoint is committed or abandoned."""
        with self._lock:
            self._outbox.forget_save(step, generation)

    def wait(self) -> None:
        """Until there is a controller, or for so long that this worker should have ended."""
        if not self._connected.is_set():
            log.warning("no controller: this worker waits for one before it saves")
            self._connected.wait(ORPHAN_LIMIT_S + SPARE_S)

    # on the client's threads

    def _take(self, attachment: int, message: ToWorker) -> None:
        with self._protocol:
            if attachment == self._attachment:
                self._received(message)

    def _lost(self, attachment: int) -> None:
        with self._lock:
            if attachment == self._attachment:
                self._connected.clear()

    # on the thread that watches

    def _watch(self) -> None:
        orphanhood = Orphanhood(time.monotonic())
        while True:
            time.sleep(LOOK_S)
            if orphanhood.lasts_s(time.monotonic(), connected=self._connected.is_set(), progress=self._progress()) > ORPHAN_LIMIT_S:
                self._end(f"no controller has attached for {ORPHAN_LIMIT_S:g} s")
            if self._was_evicted():
                self._end("its controller evicted it")

    def _was_evicted(self) -> bool:
        """By the controller to which the connection was lost, and none other has attached since."""
        with self._lock:
            contact = self._contact if not self._connected.is_set() else None
        if contact is None or not was_evicted(contact.address, contact.secret, self._worker):
            return False
        with self._lock:
            return self._contact == contact
