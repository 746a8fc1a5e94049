"""The loop: one queue in which nothing overtakes, what was heard too early, the tick, and the end."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from launcher.core.errors import StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.types import RunId, Step, Term
from launcher.record import events as r
from launcher.record.desired import WorkerBounds
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.controller.effects import AttachWorkers, EndWorkers, StartWorkers, Work
from launcher.runtime.controller.inbox import DesiredChanged, LedgerDurable, LinePrinted, StoreFailed
from launcher.runtime.controller.leadership import LeadershipLost
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.records import run_recorder
from launcher.runtime.transport.server import Disconnected, Received
from tests.support.recording import said
from tests.support.stores import MemoryStore
from tests.unit.runtime.controller.harness import G1, G2, A, B, C, Harness, beat, described, desired, leave_term, part, store_chunks

pytestmark = pytest.mark.unit


@pytest.fixture
def done(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Work]]:
    """What the coordinator is asked and what the executor carries out, in order."""
    trace: list[tuple[str, Work]] = []
    execute, decide = harness.executor.execute, harness.controller._decide

    def executed(work: Work) -> list[Work]:
        trace.append(("do", work))
        return execute(work)

    def decided(event: e.Event) -> list[e.Action]:
        trace.append(("decide", event))
        return decide(event)

    monkeypatch.setattr(harness.executor, "execute", executed)
    monkeypatch.setattr(harness.controller, "_decide", decided)
    return trace


# the queue


def test_what_follows_from_an_action_waits_until_all_actions_of_the_event_are_carried_out(
    harness: Harness, done: list[tuple[str, Work]]
) -> None:
    harness.training(1)
    newcomers = harness.warm(2)
    harness.controller.process([e.ChangeWanted(join=newcomers)])
    harness.hear(A, m.Prepared(G2, None))
    done.clear()
    harness.controller.process([e.Expired(G2)])
    late = "it did not connect to the others in time"
    assert done == [
        ("decide", e.Expired(G2)),
        ("do", e.Withdraw(G2, (A, B, C))),
        ("do", e.Evict(B, late)),
        ("do", e.Evict(C, late)),
        ("do", EndWorkers((B,))),
        ("decide", e.Gone(B, late, "evicted")),
        ("do", EndWorkers((C,))),
        ("decide", e.Gone(C, late, "evicted")),
    ]


def test_what_follows_waits_behind_what_was_there_already(harness: Harness, done: list[tuple[str, Work]]) -> None:
    harness.controller.begin([])
    done.clear()
    harness.controller.process([StartWorkers(1), AttachWorkers((C,))])
    assert done == [("do", StartWorkers(1)), ("do", AttachWorkers((C,))), ("decide", e.Started(A))]


def test_after_the_end_nothing_more_is_done(harness: Harness, done: list[tuple[str, Work]]) -> None:
    harness.controller.begin([])
    done.clear()
    end = e.End(JobState.FAILED, "out of luck", ExitCode.INFRASTRUCTURE)
    harness.controller.process([e.Failed("out of luck", ExitCode.INFRASTRUCTURE), StartWorkers(1)])
    assert done[-1] == ("do", end)
    assert harness.leadership.end == end
    assert harness.workers.started == []


def test_what_an_event_wants_beside_the_end_is_not_done_after_it(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.training(2)
    end = e.End(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)
    monkeypatch.setattr(harness.leadership.coordinator, "handle", lambda event: [e.Withdraw(G2, (A,)), end, e.Stop((A, B))])
    harness.controller.process([e.Stuck("why")])
    assert harness.sent() == [(A, m.Withdraw(G2))]
    assert harness.leadership.end == end


def test_who_has_lost_the_leadership_does_nothing_more(harness: Harness, done: list[tuple[str, Work]]) -> None:
    harness.training(2)
    harness.run.claim_term("somebody else", "later")
    done.clear()
    harness.controller.process([EndWorkers((A,)), StartWorkers(1)])
    assert done == [("do", EndWorkers((A,)))]
    assert (harness.workers.ended, harness.server.dropped) == ([], [])


def test_survivors_may_notice_a_loss_before_the_controller_does(harness: Harness) -> None:
    harness.training(2)
    harness.clock.advance(3.0)
    harness.hear(A, m.Left(G1, Step(1)))
    assert harness.tracker.begun_at == 3.0
    harness.clock.advance(1.0)
    harness.controller.handle(Disconnected(B))
    harness.recover(1)
    harness.clock.advance(1.0)
    harness.first_steps(2)
    [resized] = harness.of_kind(r.Resized)
    assert (resized.cause, resized.left, resized.total_s) == ("lost", (B,), 2.0)


# what comes before it is decided who is taken over


def test_what_is_heard_before_the_takeover_is_decided_is_handled_after_it_in_order() -> None:
    store = MemoryStore()
    leave_term(RunStore(store, RunId("r")), recorded=20)
    harness = Harness(store=store)
    harness.controller.begin([A])
    line = LinePrinted(A, "stdout", "hello")
    for item in (line, DesiredChanged(desired(target=3, revision=2)), Disconnected(A)):
        harness.controller.handle(item)
    assert (harness.leadership.desired.workers.target, harness.events()) == (2, [])
    harness.answer(described(A, ready=True, generation=1, world_size=1, applied=20, inside=True))
    assert [type(event) for event in harness.events()] == [
        r.TermStarted,
        r.WorkersAdopted,
        r.ResizeWished,
        r.WorkerLost,
        r.AllWorkersLost,
        r.TermStarted,
    ]
    assert harness.leadership.desired.workers.target == 3
    assert harness.run.names("logs") != []


def test_before_the_takeover_is_decided_a_tick_only_looks_whether_it_is_time() -> None:
    store = MemoryStore()
    leave_term(RunStore(store, RunId("r")), recorded=20)
    harness = Harness(store=store)
    harness.controller.begin([A])
    harness.tick_after(4.0)
    assert not harness.takeover.decided
    assert (harness.pods.wanted, harness.shown, harness.workers.started) == ([], [], [])
    harness.tick_after(0.1)
    assert harness.takeover.decided
    assert harness.workers.ended == [A]


# time


def test_each_tick_wants_pods_for_all_that_live_and_writes_the_status_when_it_is_due(harness: Harness) -> None:
    workers = harness.training(2)
    harness.lifecycle.release(workers[1:])
    harness.tick_after(0.5)
    assert harness.pods.wanted == [WorkerBounds(min=1, max=4, target=2)]
    written = len(harness.shown)
    assert written == 1
    assert harness.shown[-1].state is JobState.RUNNING
    harness.tick_after(0.5)
    harness.tick_after(0.5)
    assert len(harness.shown) == written, "nothing is new, and the interval is not over"
    harness.tick_after(2.0)
    assert len(harness.shown) == written + 1


def test_pods_of_workers_that_still_live_are_kept_above_the_bounds() -> None:
    harness = Harness(desired(1, 2, 2))
    harness.training(2)
    harness.lifecycle.release((C,))
    harness.controller.tick()
    assert harness.pods.wanted == [WorkerBounds(min=1, max=3, target=2)]


def test_each_tick_looks_after_the_workers(harness: Harness) -> None:
    harness.training(2)
    for _ in range(4):
        harness.clock.advance(1.0)
        harness.hear(A, beat(applied=1))
        harness.controller.tick()
    assert harness.workers.ended == [B], "it has been silent for longer than elastic.silence_s"
    assert not harness.group.settled


def test_orders_are_repeated_and_the_ledger_written_at_their_intervals(harness: Harness) -> None:
    harness.training(2)
    harness.tick_after(0.1)  # both are due at first
    newcomers = harness.warm(1)
    harness.controller.process([e.ChangeWanted(join=newcomers)])
    harness.sent()
    harness.tick_after(0.9)
    assert harness.sent() == []
    harness.hear(A, said(1, 3))
    for worker in (A, B):
        harness.hear(worker, beat(applied=3))
    harness.tick_after(0.1)
    assert [worker for worker, message in harness.sent() if isinstance(message, m.Prepare)] == [A, B, C]
    assert harness.run.names("metrics") == []
    for worker in (A, B):
        harness.hear(worker, beat(applied=3))
    harness.tick_after(9.0)
    assert len(harness.run.names("metrics")) == 1
    assert LedgerDurable(Step(3), harness.leadership.term) in harness.items()


def test_a_checkpoint_is_committed_with_its_last_part_and_does_not_wait_for_the_tick(harness: Harness) -> None:
    harness.training(2)
    store_chunks(harness.run)
    harness.hear(A, said(1, 5))
    for rank, worker in enumerate((A, B)):
        harness.hear(worker, beat(applied=5), m.Saved.of(part(rank), 0.5))
    assert harness.run.names("checkpoints") == ["000000000005-000000000001.json"]


# the end


def test_a_run_that_is_stopped_before_it_trains_ends(harness: Harness) -> None:
    harness.inbox.put(DesiredChanged(desired(state="stopped", revision=2)))
    end = harness.controller.run([])
    assert (end.state, end.exit_code) == (JobState.STOPPED, ExitCode.STOPPED)


def test_a_controller_that_is_replaced_raises(harness: Harness) -> None:
    harness.controller.begin([])
    harness.run.claim_term("somebody else", "later")
    harness.inbox.put(StoreFailed(StoreUnavailable("no answer")))
    with pytest.raises(LeadershipLost):
        harness.controller.run([])
    assert harness.leadership.end is None


class SlowTracker:
    """Takes 30 s to finish, by the test's clock, and says one thing on the way and one at its end."""

    def __init__(self, harness: Harness) -> None:
        self._clock = harness.clock
        self._left: float | None = None
        self._said = [r.Tracking(tracker="wandb", state="started", message="recording offline")]

    def start(self) -> None: ...

    def metrics(self, step: int, values: Mapping[str, object]) -> None: ...

    def finish(self, exit_code: int) -> None:
        assert exit_code == int(ExitCode.SUCCEEDED)
        self._left = 30.0

    @property
    def finished(self) -> bool:
        if self._left is not None and self._left > 0:
            self._clock.advance(1.0)
            self._left -= 1.0
            if self._left <= 0:
                self._said.append(r.Tracking(tracker="wandb", state="failed", message="it did not finish"))
        return self._left is not None and self._left <= 0

    def reports(self) -> list[r.Tracking]:
        said, self._said = self._said, []
        return said


def test_the_end_waits_for_the_last_words_of_the_tracker(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are events and in the final status; meanwhile the status shows that somebody leads."""
    monkeypatch.setattr(run_recorder, "open_tracker", lambda spec, folder: SlowTracker(harness))
    harness.training(1)
    harness.controller.process([e.Ended(A, G1, e.Outcome.FINISHED)])
    assert harness.leadership.end is not None
    shown = len(harness.shown)
    harness.controller.write_end()
    *meanwhile, last = harness.shown[shown:]
    assert len(meanwhile) >= 10, "one in 2 s: elsewhere a status that does not change for 10 s is that of a lost run"
    assert not any(status.state.terminal for status in meanwhile)
    assert last.state is JobState.SUCCEEDED
    assert last.tracking == ("recording offline", "it did not finish")
    events = harness.events()
    assert [event.state for event in events if isinstance(event, r.Tracking)] == ["started", "failed"]
    assert isinstance(events[-1], r.Ended)


def test_the_record_ends_with_what_came_last_and_the_final_state(harness: Harness) -> None:
    harness.training(2)
    harness.hear(A, said(1, 5))
    for worker in (A, B):
        harness.hear(worker, beat(applied=5))
    harness.tick_after(0.1)
    harness.controller.process([e.Failed("out of luck\n  and more of it", ExitCode.INFRASTRUCTURE)])
    harness.inbox.put(LinePrinted(A, "stderr", "the last word"))
    harness.inbox.put(Received(B, beat(applied=99)))
    harness.controller.write_end()
    ended = harness.events()[-1]
    assert ended == r.Ended(state=JobState.FAILED, reason="out of luck", exit_code=4)
    assert "the last word" in str(harness.run.segment("logs", harness.run.names("logs")[-1]))
    status = harness.run.status(Term(1))
    assert status is not None
    assert (status.state, status.exit_code, status.step) == (JobState.FAILED, 4, 5)
    assert [member.id for member in status.members] == [A, B]
    assert len(harness.run.names("metrics")) == 1
