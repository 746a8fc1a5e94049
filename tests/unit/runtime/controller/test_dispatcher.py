"""What comes in, item by item: which events of the protocol follow from it, and what goes to the record."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.errors import StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record import events as r
from launcher.runtime.cluster.node_drains import NodeDrain
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused
from launcher.runtime.controller.checkpoint_committer import Save
from launcher.runtime.controller.effects import AnnounceTerm, EndWorkers, ExplainDeath, NoteFirstStep, Work
from launcher.runtime.controller.inbox import (
    CheckpointDecided,
    DeathExplained,
    DesiredChanged,
    HigherTermSeen,
    LedgerDurable,
    LinePrinted,
    NodeDraining,
    PodBoundsRefused,
    StoreFailed,
)
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.transport.server import Disconnected, Received
from tests.support.recording import SUBMITTED_AT, said
from tests.unit.runtime.controller.harness import G1, G2, JOB, READY, A, B, C, D, Harness, beat, described, desired, part, store_chunks

pytestmark = pytest.mark.unit
USER_ERROR = m.Error(reason="ValueError: no\nTraceback ...", exit_code=ExitCode.JOB_FAILED, step=Step(7), generation=G1, recoverable=True)


def follows(harness: Harness, worker: WorkerId, message: m.ToController) -> list[Work]:
    return harness.dispatcher.dispatch(Received(worker, message))


# messages


MEANINGS = [
    pytest.param(m.Prepared(G2, 0.5), [e.Prepared(A, G2)], id="prepared"),
    pytest.param(m.Refused(G2, "no route"), [e.Refused(A, G2, "no route")], id="refused"),
    pytest.param(m.Formed(G2, Step(5)), [e.Formed(A, G2, Step(5))], id="formed"),
    pytest.param(m.Left(G1, Step(5)), [e.Left(A, G1, Step(5))], id="left"),
    pytest.param(m.Left(G1, None), [e.Left(A, G1, None)], id="left without a state"),
    pytest.param(m.Ended(G1, Step(5), Outcome.STOPPED), [e.Applied(A, G1, Step(5)), e.Ended(A, G1, Outcome.STOPPED)], id="ended at a step"),
    pytest.param(m.Broken("reset by peer"), [], id="broken"),
    pytest.param(said(1, 10), [], id="row"),
    pytest.param(m.Evaluated(Step(5), {"loss": 0.5}), [], id="evaluated"),
    pytest.param(m.SetKey(G2, "address", "bmV3"), [], id="set"),
    pytest.param(m.GetKey(G2, "address"), [], id="get"),
    pytest.param(m.Draining("SIGTERM", 20.0, "it is told to end"), [], id="draining"),
    pytest.param(READY, [e.Ready(A)], id="ready"),
    pytest.param(m.Loaded(Step(5)), [e.Loaded(A, Step(5))], id="loaded"),
    pytest.param(m.Corrupt(Step(5), "a chunk is gone"), [e.Corrupt(A, "a chunk is gone")], id="corrupt"),
    pytest.param(m.Corrupt(Step(4), "a chunk is gone"), [], id="corrupt, of a checkpoint that is not the newest"),
    pytest.param(m.Released(), [], id="released, by one that was not"),
    pytest.param(beat(1, None), [], id="beat without a state"),
    pytest.param(beat(1, 5), [e.Applied(A, G1, Step(5))], id="beat"),
    pytest.param(beat(2, 7, formed_at=5), [e.Formed(A, G2, Step(5)), e.Applied(A, G2, Step(7))], id="beat of one that has formed"),
    pytest.param(
        beat(1, 5, outcome=Outcome.HELD), [e.Applied(A, G1, Step(5)), e.Ended(A, G1, Outcome.HELD)], id="beat of one that has ended"
    ),
    pytest.param(beat(1, 5, out=True), [e.Applied(A, G1, Step(5)), e.Left(A, G1, Step(5))], id="beat of one that is out"),
    pytest.param(m.FirstStep(SUBMITTED_AT, beat(1, 5)), [e.Applied(A, G1, Step(5)), NoteFirstStep(SUBMITTED_AT)], id="first step"),
    pytest.param(m.Saved.of(part(0), 0.5), [e.SaveStarted(Step(5), G1), e.Applied(A, G1, Step(5))], id="saved"),
    pytest.param(m.SaveFailed(Step(5), G1, "disk full"), [e.SaveStarted(Step(5), G1)], id="save failed"),
    pytest.param(USER_ERROR, [EndWorkers((A,)), e.Gone(A, "ValueError: no", "error")], id="error"),
]


@pytest.mark.parametrize(("message", "work"), MEANINGS)
def test_what_a_message_means_for_the_protocol(harness: Harness, message: m.ToController, work: list[Work]) -> None:
    harness.training(2)
    harness.status.checkpoint = CheckpointInfo(Step(5), Term(1))
    assert follows(harness, A, message) == work


def test_every_message_has_a_meaning() -> None:
    never = m.Hello  # the server keeps it
    assert {type(each.values[0]) for each in MEANINGS} == set(get_args(m.ToController)) - {never}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        pytest.param(m.Refused(G2, "no route"), r.GenerationRefused(worker=A, to_generation=G2, detail="no route"), id="refused"),
        pytest.param(m.Broken("reset by peer"), r.CollectiveLeft(worker=A, detail="reset by peer"), id="broken"),
        pytest.param(m.Evaluated(Step(5), {"loss": 0.5}), r.Evaluated(at=Step(5), metrics={"loss": 0.5}), id="evaluated"),
        pytest.param(
            m.Draining("SIGTERM", 20.04, "it is told to end"),
            r.WorkerDraining(worker=A, deadline_s=20.0, detail="it is told to end"),
            id="draining",
        ),
        pytest.param(
            READY,
            r.WorkerReady(worker=A, device="cpu", threads=1, fused=True, fuse_reason="", import_s=0.5, build_s=0.25),
            id="ready",
        ),
        pytest.param(USER_ERROR, r.WorkerError(worker=A, rank=0, at=Step(7), detail="ValueError: no"), id="error"),
    ],
)
def test_what_a_message_leaves_in_the_record(harness: Harness, message: m.ToController, event: r.Event) -> None:
    harness.training(2)
    follows(harness, A, message)
    assert harness.events()[0] == event


def test_a_worker_that_is_not_known_is_not_heard(harness: Harness) -> None:
    harness.training(2)
    harness.hear(D, said(1, 10))
    for message in (READY, beat(1, 5), m.Left(G1, Step(5)), m.Broken("reset by peer"), m.Saved.of(part(0), 0.5), USER_ERROR):
        assert follows(harness, D, message) == []
    assert (harness.events(), harness.sent()) == ([], [])
    assert harness.recorder.progress.committed(Step(10)) == []


def test_a_heartbeat_tells_how_fast_a_worker_is(harness: Harness) -> None:
    harness.training(2)
    follows(harness, A, beat(1, 5, busy_s=0.25, step_s=0.5))
    assert (harness.registry.records[A].busy_s, harness.registry.records[A].step_s) == (0.25, 0.5)


def test_whatever_a_worker_says_is_a_sign_of_life(harness: Harness) -> None:
    harness.training(2)
    harness.clock.advance(70.0)
    follows(harness, A, m.GetKey(G2, "address"))
    assert [verdict.worker for verdict in harness.health.verdicts(harness.now)] == [B]  # type: ignore[union-attr]


def test_who_has_left_owes_no_answer(harness: Harness) -> None:
    harness.training(2)
    harness.health.asked([A], harness.now)
    follows(harness, A, m.Left(G1, Step(5)))
    harness.clock.advance(70.0)
    for worker in (A, B):
        follows(harness, worker, beat(1, 5))
    assert harness.health.verdicts(harness.now) == ()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_step_of_the_run_is_told_when_the_last_member_has_done_it(count: int) -> None:
    harness = Harness()
    harness.controller.begin([])
    workers = harness.warm(count)
    harness.change(workers, cause="start")
    harness.quiet()
    told = []
    for worker in workers:  # each says it once
        harness.hear(worker, m.FirstStep(SUBMITTED_AT, beat(1, 1)))
        told.append(len(harness.of_kind(r.FirstStep)))
    assert told == [0] * (count - 1) + [1]
    assert harness.recorder.tracking, "the tracker begins with it"


def test_who_is_ended_with_the_run_stays_in_its_last_status_and_is_told_of_no_death(harness: Harness) -> None:
    workers = harness.training(2)
    for worker in workers:
        harness.hear(worker, m.Ended(G1, Step(5), e.Outcome.FINISHED))
    for item in (*map(Disconnected, workers), DeathExplained(A, "ray.kill")):
        harness.inbox.put(item)
    harness.controller.write_end()
    assert all(member.pid is not None for member in harness.shown[-1].members)
    assert harness.of_kind(r.WorkerLost) == []
    assert harness.of_kind(r.WorkerDied) == []


def test_an_evaluation_that_is_said_again_is_recorded_once(harness: Harness) -> None:
    harness.training(2)
    for _ in range(2):
        follows(harness, A, m.Evaluated(Step(5), {"loss": 0.5}))
    assert len(harness.of_kind(r.Evaluated)) == 1
    harness.recorder.flush(ledger=True)
    [name] = harness.run.names("metrics")
    assert [row["eval_loss"] for row in harness.run.segment("metrics", name)] == [0.5]


def test_ranks_find_each_other_by_keys(harness: Harness) -> None:
    harness.training(2)
    follows(harness, A, m.GetKey(G2, "address"))
    assert harness.sent() == []
    follows(harness, B, m.SetKey(G2, "address", "bmV3"))
    assert harness.sent() == [(A, m.Value(G2, "address", "bmV3"))]


def test_a_worker_that_is_ready_tells_what_the_job_is(harness: Harness) -> None:
    harness.controller.begin([])
    harness.controller.process([])
    [worker] = harness.warm(1)
    assert harness.status.total_steps == JOB.total_steps
    assert harness.registry.records[worker].ready_since == harness.now


def test_the_error_of_a_loss_that_is_no_number_names_the_last_good_checkpoint(harness: Harness) -> None:
    harness.training(1)
    harness.status.checkpoint = CheckpointInfo(Step(5), Term(1))
    diverged = msgspec.structs.replace(USER_ERROR, reason="the loss is nan", recoverable=False)
    failed = follows(harness, A, diverged)[-1]
    assert isinstance(failed, e.Failed)
    assert failed == e.Failed("the loss is nan\n  last good checkpoint: step 5", ExitCode.JOB_FAILED)


# checkpoints


def test_a_part_of_an_earlier_generation_is_awaited_for_a_while_only(harness: Harness) -> None:
    harness.training(2)
    harness.change(harness.warm(1), step=5)
    assert follows(harness, A, m.Saved.of(part(0), 0.5)) == [e.SaveStarted(Step(5), G1), e.Applied(A, G1, Step(5))]
    harness.clock.advance(61.0)
    harness.committer.abandon_overdue()
    assert [type(item) for item in harness.items()] == [CheckpointDecided]


def test_only_the_first_part_begins_a_checkpoint(harness: Harness) -> None:
    harness.training(2)
    follows(harness, A, m.Saved.of(part(0), 0.5))
    assert follows(harness, B, m.Saved.of(part(1), 0.75)) == [e.Applied(B, G1, Step(5))]
    assert harness.committer.waiting
    assert harness.tracker.costs.save_s == 0.75


def test_a_part_that_could_not_be_saved_ends_its_checkpoint(harness: Harness) -> None:
    harness.training(2)
    follows(harness, A, m.Saved.of(part(0), 0.5))
    assert follows(harness, B, m.SaveFailed(Step(5), G1, "disk full")) == []
    assert harness.items() == [CheckpointDecided(Step(5), G1, Term(1), "disk full")]


@pytest.mark.parametrize("message", [m.Saved.of(part(0), 0.5), m.SaveFailed(Step(5), G1, "disk full")], ids=["saved", "failed"])
def test_who_has_not_heard_that_a_checkpoint_is_decided_is_told(harness: Harness, message: m.ToController) -> None:
    harness.training(2)
    harness.committer.begins(Save(Step(5), G1))
    harness.committer.abandon(Save(Step(5), G1), "disk full")
    assert follows(harness, A, message) == []
    assert harness.sent() == [(A, m.CheckpointDecided(Step(5), G1))]


def test_a_checkpoint_that_is_committed_is_the_newest_and_everybody_hears_of_it(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.release((C,))
    harness.quiet()
    assert harness.dispatcher.dispatch(CheckpointDecided(Step(5), G1, Term(1), "")) == [e.SaveDecided(Step(5), "", G1)]
    assert harness.status.checkpoint == CheckpointInfo(Step(5), Term(1))
    uri = "memory://runs/r/checkpoints/000000000005-000000000001.json"
    assert harness.events() == [r.CheckpointCommitted(checkpoint_step=Step(5), uri=uri)]
    assert harness.sent() == [(worker, m.CheckpointDecided(Step(5), G1)) for worker in (A, B, C)]
    assert harness.status.due(harness.now)


def test_a_checkpoint_that_was_abandoned_is_not_the_newest(harness: Harness) -> None:
    harness.training(2)
    decided = CheckpointDecided(Step(5), G1, Term(1), "disk full")
    assert harness.dispatcher.dispatch(decided) == [e.SaveDecided(Step(5), "disk full", G1)]
    assert harness.status.checkpoint is None
    assert harness.events() == [r.CheckpointFailed(checkpoint_step=Step(5), detail="disk full")]
    assert harness.sent() == [(worker, m.CheckpointDecided(Step(5), G1)) for worker in (A, B)]


def test_what_became_of_a_checkpoint_of_an_earlier_term_means_nothing(harness: Harness) -> None:
    harness.training(2)
    harness.leadership.begin_term(Term(2), harness.leadership.inherited)
    assert harness.dispatcher.dispatch(CheckpointDecided(Step(5), G1, Term(1), "")) == []
    assert (harness.status.checkpoint, harness.events(), harness.sent()) == (None, [], [])


def test_older_checkpoints_than_are_kept_go_to_the_trash() -> None:
    harness = Harness(checkpoint__keep=1)
    harness.training(1)
    for step in (5, 6):
        store_chunks(harness.run, 1)
        harness.hear(A, said(step if step > 5 else 1, step), m.Saved.of(part(0, step=step, world_size=1), 0.5))
        harness.settle()
    assert len(harness.run.names("trash")) == 1


# connections


def test_a_member_whose_connection_ends_is_lost_and_ray_is_asked_why(harness: Harness) -> None:
    harness.training(2)
    reason = "worker w1 (rank 1, pid 101 on host-w1) died: its connection ended"
    assert harness.dispatcher.dispatch(Disconnected(B)) == [ExplainDeath(B), EndWorkers((B,)), e.Gone(B, reason)]
    assert harness.events() == [r.WorkerLost(worker=B, rank=1, pid=101, node="host-w1", reason=reason)]


def test_a_worker_that_sends_what_is_no_message_is_lost(harness: Harness) -> None:
    harness.training(2)
    harness.warm(1)
    harness.quiet()
    explain, end, gone = harness.dispatcher.dispatch(Disconnected(C, "no JSON"))
    reason = "worker w2 (pid 102 on host-w2) died: it sent what is no message: no JSON"
    assert (explain, end, gone) == (ExplainDeath(C), EndWorkers((C,)), e.Gone(C, reason))
    closed, lost = harness.events()
    assert closed == r.ConnectionClosed(worker=C, detail="no JSON")
    assert isinstance(lost, r.WorkerLost)


def test_a_connection_that_did_not_say_whose_it_is_is_recorded_only(harness: Harness) -> None:
    harness.training(2)
    assert harness.dispatcher.dispatch(Disconnected(None, "no JSON")) == []
    assert harness.events() == [r.ConnectionClosed(worker=None, detail="no JSON")]


def test_the_end_of_a_connection_of_one_that_is_not_known_means_nothing(harness: Harness) -> None:
    harness.training(2)
    assert harness.dispatcher.dispatch(Disconnected(D)) == []
    assert harness.events() == []


# those who were released


@pytest.mark.parametrize(
    "message",
    [beat(1, 5), m.Left(G1, Step(5)), m.Formed(G2, Step(5)), READY, said(1, 10), USER_ERROR, m.Draining("SIGTERM", 20.0, "")],
    ids=lambda message: type(message).__name__,
)
def test_of_one_that_was_released_nothing_but_its_upload_counts(harness: Harness, message: m.ToController) -> None:
    harness.training(2)
    harness.lifecycle.release((B,))
    harness.quiet()
    assert follows(harness, B, message) == []
    assert (harness.events(), harness.lifecycle.released) == ([], (B,))


def test_the_part_of_one_that_was_released_counts(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.release((B,))
    follows(harness, A, m.Saved.of(part(0), 0.5))
    follows(harness, B, m.Saved.of(part(1), 0.5))
    assert harness.committer.waiting


def test_one_that_was_released_ends_when_it_says_that_nothing_is_left(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.release((B,))
    assert follows(harness, B, m.Released()) == [EndWorkers((B,))]
    assert follows(harness, B, m.Released()) == []
    assert harness.items() == []


def test_what_one_that_was_released_and_lost_had_to_upload_is_lost_with_it(harness: Harness) -> None:
    harness.training(2)
    follows(harness, A, m.Saved.of(part(0), 0.5))
    harness.change(leave=(B,), step=5)
    assert follows(harness, B, m.SaveFailed(Step(6), G1, "disk full")) == [e.SaveStarted(Step(6), G1)]
    harness.items()
    assert harness.dispatcher.dispatch(Disconnected(B)) == [EndWorkers((B,))]
    [decided] = harness.items()
    assert isinstance(decided, CheckpointDecided)
    assert (decided.step, decided.generation) == (5, 1)
    assert "worker w1 ended" in decided.failure


# workers that are called


def test_a_worker_that_answers_is_placed_and_told_the_term(harness: Harness) -> None:
    harness.controller.begin([])
    harness.registry.add(A, 0.0)
    harness.quiet()
    answer = Attached(A, described(A, pid=100, node="host0"))
    assert harness.dispatcher.dispatch(answer) == [AnnounceTerm((A,))]
    assert harness.registry.records[A].placed
    assert harness.events() == [r.WorkerStarted(worker=A, pid=100, node="host0")]
    assert harness.output.followed == [(A, False)]


def test_a_worker_that_dies_at_its_start_is_lost(harness: Harness) -> None:
    harness.controller.begin([])
    harness.registry.add(A, 0.0)
    reason = "worker w0 died at its start: no memory"
    assert harness.dispatcher.dispatch(AttachFailed(A, "no memory")) == [EndWorkers((A,)), e.Gone(A, reason)]


def test_a_worker_that_refuses_may_report_to_a_later_term(harness: Harness) -> None:
    harness.controller.begin([])
    harness.registry.add(A, 0.0)
    assert harness.dispatcher.dispatch(AttachRefused(A)) == []
    assert not harness.leadership.lost
    harness.run.claim_term("somebody else", "later")
    harness.dispatcher.dispatch(AttachRefused(A))
    assert harness.leadership.lost


@pytest.mark.parametrize(
    "answer", [Attached(A, described(A)), AttachRefused(A), AttachFailed(A, "it died")], ids=lambda a: type(a).__name__
)
def test_the_answer_of_one_that_was_ended_meanwhile_means_nothing(
    harness: Harness, answer: Attached | AttachRefused | AttachFailed
) -> None:
    harness.run.claim_term("somebody else", "later")
    assert harness.dispatcher.dispatch(answer) == []
    assert (harness.events(), harness.leadership.lost) == ([], False)


# what others say


def test_a_person_changes_the_size(harness: Harness) -> None:
    harness.training(2)
    wanted = desired(2, 6, 4, revision=2)
    assert harness.dispatcher.dispatch(DesiredChanged(wanted)) == []
    assert harness.leadership.desired == wanted
    assert harness.group.minimum == 2
    assert harness.events() == [r.ResizeWished(by="me", workers="2..6", target=4)]


def test_a_revision_with_the_same_size_changes_nothing(harness: Harness) -> None:
    harness.training(2)
    assert harness.dispatcher.dispatch(DesiredChanged(desired(revision=2))) == []
    assert (harness.leadership.desired.revision, harness.events()) == (2, [])


def test_a_person_stops_the_run(harness: Harness) -> None:
    harness.training(2)
    assert harness.dispatcher.dispatch(DesiredChanged(desired(1, 8, 8, revision=2, state="stopped"))) == [e.StopWanted()]
    assert harness.of_kind(r.ResizeWished) == []


def test_a_save_of_a_step_that_another_generation_has_saved_is_decided_with_it(harness: Harness) -> None:
    """Its other parts may never come: whoever had them may be gone after it had done all that there was to do."""
    harness.training(2)
    again, saved = Generation(2), CheckpointDecided(Step(5), G1, Term(1), "")
    follows(harness, A, m.Saved.of(part(0, generation=again), 0.5))
    assert harness.dispatcher.dispatch(saved) == [e.SaveDecided(Step(5), "", G1)]
    assert harness.items() == [CheckpointDecided(Step(5), again, Term(1), "")]
    assert harness.dispatcher.dispatch(CheckpointDecided(Step(5), again, Term(1), "")) == [e.SaveDecided(Step(5), "", again)]
    assert len(harness.of_kind(r.CheckpointCommitted)) == 1, "there is one checkpoint"


def test_workers_that_hold_a_state_hear_what_is_durable(harness: Harness) -> None:
    harness.training(2)
    harness.lifecycle.release((C,))
    assert harness.dispatcher.dispatch(LedgerDurable(Step(5), harness.leadership.term)) == []
    assert harness.sent() == [(A, m.Durable(Step(5))), (B, m.Durable(Step(5)))]


def test_a_newcomer_hears_of_nothing_durable_for_it_may_have_to_compute_these_steps_again(harness: Harness) -> None:
    harness.training(2)
    harness.registry.add(C, 0.0)
    harness.leadership.coordinator.handle(e.Started(C))
    harness.leadership.coordinator.handle(e.Ready(C))
    harness.dispatcher.dispatch(LedgerDurable(Step(5), harness.leadership.term))
    assert [worker for worker, _ in harness.sent()] == [A, B]


def test_what_is_durable_of_a_term_that_was_rolled_back_is_told_to_nobody(harness: Harness) -> None:
    harness.training(2)
    harness.dispatcher.dispatch(LedgerDurable(Step(5), Term(harness.leadership.term - 1)))
    assert harness.sent() == []


def test_whether_a_higher_term_is_there_is_looked_up(harness: Harness) -> None:
    harness.dispatcher.dispatch(HigherTermSeen())
    assert not harness.leadership.lost, "it is the controller's own: it began a new term meanwhile"
    harness.run.claim_term("somebody else", "later")
    harness.dispatcher.dispatch(HigherTermSeen())
    assert harness.leadership.lost


def test_a_record_that_cannot_be_written_fails_the_run(harness: Harness) -> None:
    error = StoreUnavailable("the store does not answer", where="memory://runs")
    assert harness.dispatcher.dispatch(StoreFailed(error)) == [e.Failed(str(error), ExitCode.INFRASTRUCTURE)]


@pytest.mark.parametrize(("said_s", "expected_s"), [(12.0, 12.0), (None, 25.0)], ids=["with a deadline", "without: elastic.drain_s"])
def test_all_workers_of_a_node_that_is_drained_leave_it(harness: Harness, said_s: float | None, expected_s: float) -> None:
    harness.training(2)
    harness.clock.advance(1.0)
    drain = NodeDrain("node-w1", said_s)
    assert harness.dispatcher.dispatch(NodeDraining(drain)) == []
    assert harness.events() == [r.WorkerDraining(worker=B, deadline_s=expected_s, detail=drain.detail)]
    assert harness.registry.records[B].leave_by == 1.0 + expected_s
    assert harness.registry.records[A].leave_by is None


def test_a_line_that_a_worker_printed_is_kept_with_its_place(harness: Harness) -> None:
    harness.training(2)
    for worker in (B, D):
        assert harness.dispatcher.dispatch(LinePrinted(worker, "stderr", "hello")) == []
    harness.events()
    [name] = harness.run.names("logs")
    lines = [(line["worker"], line["rank"], line["generation"], line["stream"], line["line"]) for line in harness.run.segment("logs", name)]
    assert lines == [(B, 1, 1, "stderr", "hello"), (D, None, 1, "stderr", "hello")]


def test_bounds_that_kubernetes_refuses_are_recorded(harness: Harness) -> None:
    harness.dispatcher.dispatch(PodBoundsRefused("403"))
    assert harness.events() == [r.ClusterBoundsRefused(detail="403")]
