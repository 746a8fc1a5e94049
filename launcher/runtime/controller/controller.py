"""The controller's loop: the inbox, the queue of work, and the tick. Runs in the controller process.

Everything that happens comes through the inbox, item by item. The dispatcher, the policies and the takeover turn it into work; work waits in one
first-in-first-out queue. An event goes to the coordinator, whose actions the executor carries out at once; what follows from them is queued
behind what waits already. So nothing is decided while something else is being carried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from launcher.core.clock import Clock
from launcher.core.types import WorkerId
from launcher.record.members import Member
from launcher.runtime.cluster.pod_bounds import PodBounds, pod_bounds
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter
from launcher.runtime.controller.closing import write_end, write_status
from launcher.runtime.controller.deaths import Deaths
from launcher.runtime.controller.dispatcher import Dispatcher
from launcher.runtime.controller.effects import Work
from launcher.runtime.controller.executor import Executor
from launcher.runtime.controller.inbox import Inbox, Item
from launcher.runtime.controller.leadership import Leadership, LeadershipLost
from launcher.runtime.controller.reconciler import Reconciler
from launcher.runtime.controller.resize_tracker import ResizeTracker
from launcher.runtime.controller.takeover import Takeover
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.group import Phase
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter
from launcher.runtime.transport.server import Received


class Controller:
    def __init__(
        self,
        leadership: Leadership,
        inbox: Inbox,
        takeover: Takeover,
        dispatcher: Dispatcher,
        lifecycle: WorkerLifecycle,
        reconciler: Reconciler,
        executor: Executor,
        tracker: ResizeTracker,
        registry: WorkerRegistry,
        committer: CheckpointCommitter,
        recorder: RunRecorder,
        status: StatusWriter,
        deaths: Deaths,
        clock: Clock,
        timing: Timing,
        pods: PodBounds | None,
    ) -> None:
        """`pods`: on Kubernetes, what keeps the bounds of the group of worker pods at those of the run."""
        self._leadership, self._inbox, self._takeover, self._dispatcher = leadership, inbox, takeover, dispatcher
        self._lifecycle, self._reconciler, self._executor, self._tracker = lifecycle, reconciler, executor, tracker
        self._registry, self._committer, self._recorder, self._status = registry, committer, recorder, status
        self._deaths, self._clock, self._timing, self._pods = deaths, clock, timing, pods
        self._queue: deque[Work] = deque()
        self._early: deque[Item] = deque()
        """Heard before it was decided which workers the term takes over."""
        self._repeat_due = self._ledger_due = 0.0

    def run(self, living: Sequence[WorkerId]) -> e.End:
        """Take over the workers that live, then lead until it is decided how the run ends. Raises LeadershipLost."""
        self.begin(living)
        while self._leadership.active:
            item = self._inbox.get(self._timing.tick_s)
            while item is not None:
                self.handle(item)
                item = self._inbox.get(0.0)
            self.tick()
        if self._leadership.lost or self._leadership.end is None:
            raise LeadershipLost
        self._hear_of_deaths()
        return self._leadership.end

    # what comes in

    def begin(self, living: Sequence[WorkerId]) -> None:
        """Begin to take over. `living`: the run's workers of earlier terms."""
        self.process(self._takeover.begin(living))

    def handle(self, item: Item) -> None:
        """One item of the inbox."""
        if self._takeover.decided:
            self.process(self._dispatcher.dispatch(item))
            if isinstance(item, Received) and isinstance(item.message, m.Saved) and self._committer.waiting:
                self._commit()
        elif isinstance(item, (Attached, AttachRefused, AttachFailed)):
            self.process(self._takeover.answered(item))
            self._handle_early()
        else:
            if isinstance(item, Received) and isinstance(item.message, m.Beat):
                self._takeover.heard(item.worker, item.message)
            self._early.append(item)

    def _handle_early(self) -> None:
        while self._takeover.decided and self._early:
            self.handle(self._early.popleft())

    def process(self, work: Iterable[Work]) -> None:
        """Do it, and everything that follows from it, as long as there is anything left to decide."""
        self._queue.extend(work)
        while self._queue and self._leadership.active:
            item = self._queue.popleft()
            if isinstance(item, e.Event):
                for action in self._decide(item):
                    if self._leadership.active:
                        self._queue.extend(self._executor.execute(action))
            else:
                self._queue.extend(self._executor.execute(item))

    def _decide(self, event: e.Event) -> list[e.Action]:
        group = self._leadership.group
        before, trained = group.ranks, group.phase is Phase.TRAINING
        actions = self._leadership.coordinator.handle(event)
        if trained and group.phase is Phase.LEAVING:
            self._tracker.broke_off(before)
        return actions

    # time

    def tick(self) -> None:
        """Every `tick_s` seconds: what is due."""
        now = self._clock.monotonic()
        if not self._takeover.decided:
            self.process(self._takeover.look(now))
            self._handle_early()
            return
        for lost in self._lifecycle.look(now):
            self.process(lost)
        self._note_deaths(now)
        self.process(self._reconciler.look(now))
        if self._pods is not None:
            living = len(self._registry) + len(self._lifecycle.released)
            self._pods.want(pod_bounds(self._leadership.desired.workers, living))
        if now >= self._repeat_due:
            self._repeat_due = now + self._timing.repeat_s
            self.process(self._executor.repeat(now))
        if self._leadership.active:
            self._write_records(now)

    def _write_records(self, now: float) -> None:
        self._commit()
        self._note_tracker()
        due = now >= self._ledger_due
        if due:
            self._ledger_due = now + self._timing.ledger_s
        self._recorder.flush(ledger=due)
        if self._status.due(now):
            write_status(self._leadership, self._recorder, self._status, self._members())

    def _commit(self) -> None:
        """Steps that all hold count from now on; then checkpoints that rest on them."""
        group = self._leadership.group
        self._recorder.commit(group.committed)
        self._committer.commit_due(group.on_line)

    def _note_deaths(self, now: float) -> None:
        for died in self._deaths.look(now):
            self._recorder.event(died)

    def _hear_of_deaths(self) -> None:
        """The end may rest on a death whose cause is on its way."""
        while self._deaths.pending:
            if (item := self._inbox.get(self._timing.tick_s)) is not None:
                self.handle(item)
            self._note_deaths(self._clock.monotonic())

    def _note_tracker(self) -> None:
        for report in self._recorder.reports():
            self._recorder.event(report)
            self._status.tracked(report)

    def _members(self) -> tuple[Member, ...]:
        group = self._leadership.group
        return self._registry.describe(group.ranks) if group.current is not None else ()

    # the end

    def write_end(self) -> None:
        """What the run's record ends with. Whoever has not been heard by now is not heard any more."""
        end = self._leadership.end
        assert end is not None
        while (item := self._inbox.get(0.0)) is not None:
            self.handle(item)
        self._commit()
        self._tracker.tell()
        end = replace(end, reason=self._deaths.explained(end.reason))
        self._finish_tracking(end)
        write_end(self._leadership, end, self._recorder, self._status, self._members())

    def _finish_tracking(self, end: e.End) -> None:
        """The tracker's last words belong to the record, so the end waits for them; meanwhile the status shows that this controller lives."""
        self._recorder.finish(int(end.exit_code))
        self._status.wait_for_tracker()
        while not self._recorder.finished:
            if (item := self._inbox.get(self._timing.tick_s)) is not None:
                self.handle(item)
            if self._status.due(self._clock.monotonic()):
                write_status(self._leadership, self._recorder, self._status, self._members())
        self._note_tracker()
