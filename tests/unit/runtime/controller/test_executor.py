"""Each thing that was decided, carried out: what is sent to whom, what is recorded, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.checkpoint.catalog import CheckpointInfo, manifest_key
from launcher.core.exit_codes import ExitCode
from launcher.core.store import open_store
from launcher.core.types import RunId, Step, Term
from launcher.record import events as r
from launcher.record.members import Member
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.cluster.worker_group import Invitation
from launcher.runtime.controller.checkpoint_committer import Save
from launcher.runtime.controller.effects import AnnounceTerm, AttachWorkers, EndWorkers, ExplainDeath, StartWorkers
from launcher.runtime.controller.inbox import CheckpointDecided, DeathExplained
from launcher.runtime.policies.health import Unanswered
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from tests.support.recording import said
from tests.unit.runtime.controller.harness import CONTACT, G1, G2, G3, A, B, C, Harness, beat, leave_term, part, store_chunks

pytestmark = pytest.mark.unit
FORMATION = e.Formation(G2, (A, C))
END = e.End(JobState.FAILED, "out of luck", ExitCode.INFRASTRUCTURE)


# orders


def test_members_are_told_their_places_and_the_record_once_that_a_generation_is_prepared(harness: Harness) -> None:
    harness.training(2)
    prepare = e.Prepare(FORMATION, (B,), to=(A, C, B))
    assert [harness.executor.execute(prepare) for _ in range(2)] == [[], []]
    assert harness.sent() == 2 * [
        (A, m.Prepare(G2, 0, 2, False)),
        (C, m.Prepare(G2, 1, 2, False)),
        (B, m.Prepare(G2, None, 2, False)),
    ]
    assert harness.events() == [r.GenerationPrepared(to_generation=G2, world_size=2)]
    harness.executor.execute(e.Prepare(e.Formation(G3, (A,)), (), to=(A,)))
    assert harness.events() == [r.GenerationPrepared(to_generation=G3, world_size=1)]


def test_who_is_committed_to_a_generation_is_used_from_then_on(harness: Harness) -> None:
    harness.training(2)
    [newcomer] = harness.warm(1)
    harness.tracker.wanted("grow", "", harness.now, (A, B), joins=True)
    harness.quiet()
    commit = e.Commit(FORMATION, (B,), donors=(0,), receivers=(1,), step=None, again=False, hold=False, save=False, to=(A, B, C))
    assert not harness.registry.records[newcomer].used
    assert harness.executor.execute(commit) == []
    assert harness.registry.records[newcomer].used
    facts = (G2, None, False, False, False)
    assert harness.sent() == [(A, m.Commit(*facts, (0,), (1,))), (B, m.Commit(*facts, (), ())), (C, m.Commit(*facts, (0,), (1,)))]
    assert harness.tracker._timing is not None
    assert harness.tracker._timing.generation == G2


def test_a_change_that_is_withdrawn_came_to_nothing(harness: Harness) -> None:
    harness.training(2)
    harness.tracker.wanted("grow", "", harness.now, (A, B), joins=True)
    assert harness.executor.execute(e.Withdraw(G2, (A, C))) == []
    assert harness.sent() == [(A, m.Withdraw(G2)), (C, m.Withdraw(G2))]
    assert harness.events() == [r.GenerationWithdrawn(to_generation=G2)]
    assert harness.tracker.begun_at is None


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(e.Leave(G1, (A,)), id="leave"),
        pytest.param(e.Prepare(e.Formation(G2, (A,)), (), to=(A,), leave=True), id="prepare and leave"),
    ],
)
def test_who_is_told_to_leave_owes_an_answer(harness: Harness, order: e.Action) -> None:
    harness.training(2)
    harness.controller.process([e.Gone(B, "it died")])
    harness.health.answered(A)
    assert harness.group.awaited == (A,)
    harness.quiet()
    assert harness.executor.execute(order) == []
    assert [worker for worker, _ in harness.sent()] == [A]
    harness.clock.advance(61.0)
    harness.hear(A, beat())
    owing = [verdict.worker for verdict in harness.health.verdicts(harness.now) if isinstance(verdict, Unanswered)]
    assert owing == [A]


def test_workers_are_told_to_stop(harness: Harness) -> None:
    harness.training(2)
    assert harness.executor.execute(e.Stop((A, B))) == []
    assert harness.sent() == [(A, m.Stop()), (B, m.Stop())]
    assert harness.events() == [r.Stopping()]


def test_who_has_left_is_released_and_no_more_one_of_the_workers(harness: Harness) -> None:
    harness.training(2)
    assert harness.executor.execute(e.Release((B,))) == []
    assert harness.sent() == [(B, m.Release())]
    assert harness.events() == [r.WorkerReleased(worker=B)]
    assert (harness.lifecycle.released, B in harness.registry) == ((B,), False)


# loading


def test_workers_load_the_newest_checkpoint(harness: Harness) -> None:
    harness.status.checkpoint = CheckpointInfo(Step(5), Term(1))
    assert harness.executor.execute(e.Load((A, B))) == []
    assert harness.sent() == [(A, m.Load(Step(5), Term(1))), (B, m.Load(Step(5), Term(1)))]


def test_workers_begin_with_the_newest_weights_of_another_run(tmp_path: Path) -> None:
    other = RunStore(open_store(str(tmp_path), create=True), RunId("r0"))
    leave_term(other, recorded=9, checkpoints=(3, 8))
    harness = Harness(checkpoint__init_from=f"{tmp_path}/r0")
    assert harness.executor.execute(e.Load((A,))) == []
    assert harness.sent() == [(A, m.Load(init_from=m.CheckpointSource(str(tmp_path), RunId("r0"), Step(8), Term(1))))]


def test_a_run_that_has_no_weights_to_begin_from_fails(tmp_path: Path) -> None:
    leave_term(RunStore(open_store(str(tmp_path), create=True), RunId("r0")), recorded=9)
    harness = Harness(checkpoint__init_from=f"{tmp_path}/r0")
    [failed] = harness.executor.execute(e.Load((A,)))
    assert isinstance(failed, e.Failed)
    assert failed.exit_code is ExitCode.INFRASTRUCTURE
    assert "checkpoint.init_from" in failed.reason
    assert f"{tmp_path}/r0" in failed.reason
    assert harness.sent() == []


# what else the coordinator wants


def test_who_is_evicted_is_ended_and_gone(harness: Harness) -> None:
    harness.training(2)
    assert harness.executor.execute(e.Evict(B, "too late")) == [EndWorkers((B,)), e.Gone(B, "too late", "evicted")]
    assert harness.events() == [r.WorkerEvicted(worker=B, rank=1, pid=101, node="host-w1", reason="too late")]
    assert harness.workers.ended == [], "that is done in its turn"


def test_saves_of_a_generation_that_has_lost_a_member_are_abandoned(harness: Harness) -> None:
    harness.training(2)
    harness.committer.begins(Save(Step(5), G1))
    assert harness.executor.execute(e.AbandonSaves(G1)) == []
    [decided] = harness.items()
    assert isinstance(decided, CheckpointDecided)
    assert (decided.step, decided.generation) == (5, 1)
    assert "saved again" in decided.failure


def test_a_generation_that_is_formed_goes_to_the_record_and_its_rank_0_says_its_rows_again(harness: Harness) -> None:
    harness.training(2)
    harness.warm(1)
    harness.hear(A, m.GetKey(G1, "address"), m.GetKey(G2, "address"), said(1, 5))
    harness.controller._leadership.coordinator.group.current = FORMATION
    harness.quiet()
    changed = e.Changed(FORMATION, (A, B), "grow", "as asked", Step(4), False)
    assert harness.executor.execute(changed) == []
    assert harness.sent() == [(A, m.SendRecords())]
    [formed] = harness.of_kind(r.GenerationFormed)
    assert (formed.cause, formed.world_size, formed.held) == ("grow", 2, False)
    assert formed.workers == (
        Member(id=A, rank=0, node="host-w0", pid=100),
        Member(id=C, rank=1, node="host-w2", pid=102),
    )
    assert (harness.recorder.generation, harness.status.changes) == (2, 1)
    assert harness.status.due(harness.now)
    assert harness.recorder.progress.committed(Step(5)) == [], "step 5 of the generation before was never committed"
    harness.hear(C, m.SetKey(G1, "address", "b2xk"), m.SetKey(G2, "address", "bmV3"))
    assert harness.sent() == [(A, m.Value(G2, "address", "bmV3"))], "who looks for members of an earlier generation is forgotten"


def test_the_first_generation_is_no_change_of_the_group(harness: Harness) -> None:
    harness.controller.begin([])
    harness.change(harness.warm(2), cause="start")
    assert harness.status.changes == 0


def test_a_checkpoint_that_is_not_whole_is_told_and_an_older_one_taken(harness: Harness) -> None:
    harness.training(1)
    for step in (5, 10):
        harness.run.store.put(harness.run.key(manifest_key(step, 1)), b"{}")
    work = harness.executor.execute(e.RollBack(Step(10), "a chunk is gone"))
    assert EndWorkers((A,)) in work
    corrupt, started = harness.events()
    assert corrupt == r.CheckpointCorrupt(checkpoint_step=Step(10), detail="a chunk is gone")
    assert isinstance(started, r.TermStarted)
    assert (started.checkpoint_step, harness.leadership.term) == (5, 2)


def test_where_nobody_holds_the_state_the_newest_checkpoint_is_taken(harness: Harness) -> None:
    harness.training(1)
    harness.run.store.put(harness.run.key(manifest_key(5, 1)), b"{}")
    harness.tracker.lost("lost", "it died", (A,), None)
    harness.executor.execute(e.AllLost("it died"))
    lost, started = harness.events()
    assert lost == r.AllWorkersLost(reason="it died")
    assert isinstance(started, r.TermStarted)
    assert (started.checkpoint_step, harness.leadership.term) == (5, 2)
    assert harness.tracker.begun_at is None


def test_the_end_is_taken_by_who_leads(harness: Harness) -> None:
    assert harness.executor.execute(END) == []
    assert (harness.leadership.end, harness.leadership.active) == (END, False)


def test_the_end_is_not_taken_by_who_was_replaced(harness: Harness) -> None:
    harness.run.claim_term("somebody else", "later")
    assert harness.executor.execute(END) == []
    assert (harness.leadership.end, harness.leadership.lost) == (None, True)


# processes


def test_workers_are_started_and_called(harness: Harness) -> None:
    harness.clock.advance(3.0)
    assert harness.executor.execute(StartWorkers(2)) == [e.Started(A), e.Started(B)]
    assert harness.workers.started == [((A, B), False)]
    assert harness.workers.attached == [(worker, Invitation(Term(1), *CONTACT)) for worker in (A, B)]
    assert [(each.worker, each.started_at, each.placed) for each in harness.registry.records.values()] == [(A, 3.0, False), (B, 3.0, False)]


def test_newcomers_know_that_they_join_a_group_at_work(harness: Harness) -> None:
    harness.training(1)
    harness.executor.execute(StartWorkers(1))
    assert harness.workers.started[-1] == ((B,), True)


def test_living_workers_are_called_under_the_present_term(harness: Harness) -> None:
    harness.leadership.begin_term(Term(7), harness.leadership.inherited)
    assert harness.executor.execute(AttachWorkers((A,))) == []
    assert harness.workers.attached == [(A, Invitation(Term(7), *CONTACT))]
    assert harness.executor.execute(AnnounceTerm((A, B))) == []
    assert harness.sent() == [(A, m.TermBegan(Term(7))), (B, m.TermBegan(Term(7)))]


def test_workers_are_ended_with_their_connections(harness: Harness) -> None:
    assert harness.executor.execute(EndWorkers((A, B))) == []
    assert (harness.server.dropped, harness.workers.ended) == ([A, B], [A, B])


def test_nobody_is_ended_by_who_was_replaced(harness: Harness) -> None:
    harness.run.claim_term("somebody else", "later")
    assert harness.executor.execute(EndWorkers((A,))) == []
    assert (harness.server.dropped, harness.workers.ended, harness.leadership.lost) == ([], [], True)


def test_what_ray_says_of_a_death_comes_through_the_inbox(harness: Harness) -> None:
    assert harness.executor.execute(ExplainDeath(A)) == []
    assert harness.items() == [DeathExplained(A, "killed for want of memory")]


# again and again


def prepared(harness: Harness) -> None:
    """A third worker is to join two that train; nobody has answered."""
    harness.training(2)
    harness.controller.process([e.ChangeWanted(join=harness.warm(1))])


def test_orders_that_were_not_answered_are_repeated(harness: Harness) -> None:
    prepared(harness)
    harness.hear(A, m.Prepared(G2, None))
    [again] = harness.executor.repeat(harness.now)
    assert isinstance(again, e.Prepare)
    assert again.to == (B, C)


def test_a_generation_that_takes_too_long_expires_once(harness: Harness) -> None:
    prepared(harness)
    kinds = []
    for seconds in (10.0, 0.1, 1.0):
        harness.clock.advance(seconds)
        kinds.append([work for work in harness.executor.repeat(harness.now) if isinstance(work, e.Expired)])
    assert kinds == [[], [e.Expired(G2)], []]


def test_an_order_that_is_repeated_does_not_put_off_when_its_generation_expires(harness: Harness) -> None:
    prepared(harness)
    harness.clock.advance(6.0)
    harness.controller.process(harness.executor.repeat(harness.now))
    harness.clock.advance(4.1)
    assert e.Expired(G2) in harness.executor.repeat(harness.now)


def test_members_are_told_again_to_stop_and_those_who_left_to_end(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.release((C,))
    harness.executor.repeat(harness.now)
    assert harness.sent() == [(C, m.Release())]
    harness.controller.process([e.StopWanted()])
    harness.sent()
    harness.executor.repeat(harness.now)
    assert harness.sent() == [(A, m.Stop()), (B, m.Stop()), (C, m.Release())]


def test_parts_that_an_earlier_controller_was_to_have_are_not_awaited_for_ever(harness: Harness) -> None:
    harness.training(2)
    harness.committer.take_over(Save(Step(5), G1))
    harness.clock.advance(61.0)
    harness.executor.repeat(harness.now)
    assert [type(item) for item in harness.items()] == [CheckpointDecided]


@pytest.mark.parametrize(
    ("committed", "rows", "asked"),
    [(20, 0, False), (21, 0, True), (21, 1, False)],
    ids=["two windows", "more than two windows", "the rows are there"],
)
def test_rows_that_committed_steps_lack_are_asked_for(harness: Harness, committed: int, rows: int, *, asked: bool) -> None:
    """With a row for 10 steps."""
    harness.training(2)
    for number in range(rows):
        harness.hear(A, said(10 * number + 1, 10 * number + 10))
    for worker in (A, B):
        harness.hear(worker, beat(applied=committed))
    harness.executor.repeat(harness.now)
    assert harness.sent() == ([(A, m.SendRecords())] if asked else [])


def test_rows_that_a_checkpoint_waits_for_are_asked_for(harness: Harness) -> None:
    harness.training(2)
    store_chunks(harness.run)
    for rank, worker in enumerate((A, B)):
        harness.hear(worker, m.Saved.of(part(rank), 0.5))
    assert harness.committer.waiting
    harness.executor.repeat(harness.now)
    assert harness.sent() == [(A, m.SendRecords())]
